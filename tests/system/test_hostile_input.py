"""Hostile files through the command line: one sentence, exit code 2, nothing left behind."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.trust.test_hostile_files import ROW

pytestmark = [pytest.mark.system, pytest.mark.slow]

CONTENTS = {
    "twice.jsonl": f'{ROW}, "id": "b"}}\n'.encode(),
    "late.jsonl": f'{ROW}}}\n{{"id": "b", "source": "s", "text": "\\ud800"}}\n'.encode(),
    "short.csv": b"id,text,source,more\na,one two,s,x\nb,one two,s\n",
    "cut.parquet": b"PAR1\xff\xff\xff\x7fPAR1",
}


def test_a_file_nobody_should_write_is_a_sentence(dataworth, checkpoints, queries_file, tmp_path):
    def refused(name):
        path, store, out = tmp_path / name, tmp_path / f"{name} store", tmp_path / f"{name} out"
        path.write_bytes(CONTENTS[name])
        given = ("--model", checkpoints["llama"], "--queries", queries_file, "--corpus.max_length", "32")
        result = dataworth("value", *given, "--corpus", path, "--store", store, "--results", out)
        assert result.returncode == 2, (name, result.stderr)
        assert "Traceback" not in result.stderr
        assert result.stderr.strip().splitlines()[-1].startswith(f"dataworth: {path}"), result.stderr
        assert [left for left in store.rglob("*") if left.is_file() and left.suffix != ".lock"] == []
        assert not out.exists()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(refused, CONTENTS))
