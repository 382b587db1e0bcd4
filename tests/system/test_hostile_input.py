"""Hostile files through the command line: one sentence, exit code 2, nothing left behind."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
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


def strangers(folder, checkpoint):
    """What is said of it → the checkpoint and the corpus that are given."""
    (folder / "set").mkdir()
    (folder / "secret.jsonl").write_text(f"{ROW}}}\n")
    (folder / "set" / "README.md").write_text(
        "---\nconfigs: [{config_name: default, data_files: ../secret.jsonl}]\n---\n"
    )
    bomb = {"id": ["a"], "source": ["s"], "text": ["x" * 300_000_000]}
    pq.write_table(pa.table(bomb), folder / "bomb.parquet", compression="zstd")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("one two")
    (folder / "texts" / "b.txt").symlink_to("../secret.jsonl")
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "fine.jsonl").write_text(f"{ROW}}}\n")
    exploding = shutil.copytree(checkpoint, folder / "exploding") / "tokenizer.json"
    doubled = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    parts = json.loads(exploding.read_text()) | {"normalizer": {"type": "Sequence", "normalizers": [doubled] * 40}}
    exploding.write_text(json.dumps(parts))
    return {
        "its README.md names data_files '../secret.jsonl'": (checkpoint, f"hf:{folder / 'set'}"),
        "field 'text': a page of": (checkpoint, folder / "bomb.parquet"),
        "b.txt: links to what is outside of the folder": (checkpoint, folder / "texts"),
        "pipe.jsonl: is a pipe, expected a plain file": (checkpoint, folder / "pipe.jsonl"),
        "its tokenizer: needs more memory than any should": (exploding.parent, folder / "fine.jsonl"),
    }


def test_a_stranger_neither_leads_away_nor_explodes(dataworth, checkpoints, queries_file, tmp_path):
    cases = strangers(tmp_path, checkpoints["llama"])

    def refused(said):
        model, corpus = cases[said]
        given = ("--queries", queries_file, "--corpus.max_length", "32", "--store", tmp_path / f"{said[:9]} store")
        result = dataworth("value", "--model", model, "--corpus", corpus, *given, "--results", tmp_path / "out")
        assert result.returncode == 2, (said, result.stderr)
        assert "Traceback" not in result.stderr
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("dataworth: "), last
        assert said in last, last
        assert not (tmp_path / "out").exists()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(refused, cases))
