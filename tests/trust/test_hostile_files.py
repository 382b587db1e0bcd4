"""Files nobody should write: read as they are, or refused by one sentence, with nothing left behind."""

import io
import json
import os
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataworth.command import cli
from dataworth.storage.errors import InputError
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.readers import read_documents, read_queries
from dataworth.tasks.corpus.windows import class_number
from dataworth.tasks.model.config import ModelConfig
from tests.harness.fuzz import fuzz

ROW = '{"id": "a", "source": "s", "text": "one two"'


@pytest.mark.slow
def test_some_hundreds_of_hostile_files(checkpoints, tmp_path):
    """The long form is in tests.bench.fuzz."""
    language, classifier = (ModelConfig(name=str(checkpoints[name])) for name in ("llama", "bert classifier"))
    counts = fuzz(range(600), tmp_path, {"corpus": language, "queries": language, "classes": classifier})
    assert sum(found.total() for found in counts.values()) == 600
    assert all(found["read"] > 10 and found["refused"] > 10 for found in counts.values())


def refusal(path, **fields):
    with pytest.raises(InputError) as caught:
        list(read_documents(CorpusConfig(files=[str(path)], **fields)))
    assert str(caught.value).isprintable()
    return str(caught.value)


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_name_that_comes_twice_is_refused_wherever_it_comes(tmp_path):
    twice = written(tmp_path / "c.jsonl", f'{ROW}, "id": "b"}}\n')
    assert refusal(twice) == f"{twice}, line 1: broken JSON (the name 'id' comes twice in one object)"
    twice = written(tmp_path / "c.csv", "id,source,text,text\na,s,one,two\n")
    assert refusal(twice) == f"{twice}, line 1, field 'text': two columns have this name"
    array = pa.array(["x"])
    pq.write_table(pa.table([array] * 4, names=["id", "source", "text", "text"]), tmp_path / "c.parquet")
    assert refusal(tmp_path / "c.parquet").endswith("c.parquet, field 'text': two columns have this name")


def test_a_line_of_a_table_that_was_cut_off_is_refused(tmp_path):
    path = written(tmp_path / "c.csv", "id,text,source,more\na,one two,s,x\nb,one two,s\n")
    assert refusal(path) == f"{path}, line 3: has fewer cells than the header has names"


@pytest.mark.parametrize("number", [10**400, -(10**400), 2**63])
def test_a_number_beyond_64_bits_is_refused(tmp_path, number):
    path = written(tmp_path / "c.jsonl", f'{ROW}, "year": {number}}}')
    assert refusal(path, fields=["year"]).endswith("line 1, field 'year': an integer beyond 64 bits, use text")


def test_a_class_of_thousands_of_digits_is_refused():
    with pytest.raises(InputError, match=r"the model has no class '9{77}…'"):
        class_number("9" * 5000, ["no", "yes"], "c.jsonl, line 1")


def test_columns_nobody_asked_for_do_no_harm(tmp_path):
    strings = {name: ["one two"] for name in ("id", "source", "text")}
    late = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table({**strings, "when": late, "text.x": late}), tmp_path / "c.parquet")
    (found,) = read_documents(CorpusConfig(files=[str(tmp_path / "c.parquet")]))
    assert found.text == "one two"
    pq.write_table(pa.table({**strings, "text": late}), tmp_path / "c.parquet")
    assert "not a readable Parquet file" in refusal(tmp_path / "c.parquet")


def test_a_flipped_bit_of_a_table_with_checksums_is_refused(tmp_path):
    buffer = io.BytesIO()
    table = pa.Table.from_pandas(pd.DataFrame({"id": ["a"], "source": ["s"], "text": ["one two three"]}))
    pq.write_table(
        table, buffer, write_page_checksum=True, compression="none", use_dictionary=False, write_statistics=False
    )
    content = bytearray(buffer.getvalue())
    content[content.index(b"one two three")] ^= 1
    assert "not a readable Parquet file" in refusal(written(tmp_path / "c.parquet", bytes(content)))


def test_what_cannot_be_listed_or_is_elsewhere_is_not_left_out(tmp_path, monkeypatch):
    root = tmp_path / "texts"
    (root / "shut").mkdir(parents=True)
    written(root / "a.txt", "\ufeffone two")
    (found,) = read_documents(CorpusConfig(files=[str(root)]))
    assert found.text == "one two"
    (root / "linked").symlink_to(tmp_path)
    assert refusal(root).startswith(f"{root / 'linked'}: links to what is outside of the folder")
    (root / "linked").unlink()
    real = os.scandir

    def shut(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", shut)
    assert refusal(root) == f"{root / 'shut'}: cannot be read (Permission denied)"


def test_names_of_files_do_not_write_to_the_terminal(tmp_path):
    root = tmp_path / "texts"
    root.mkdir()
    written(root / "\x1b[2J\n\u202e.txt", b"\xff")
    assert "\\x1b[2J\\n\\u202e.txt, line 1: not valid UTF-8" in refusal(root)


def test_a_query_is_not_called_as_all_together(tmp_path):
    path = written(tmp_path / "q.jsonl", json.dumps({"id": "*", "prompt": "x"}))
    with pytest.raises(InputError, match=r"line 1, field 'id': '\*' stands for all queries together"):
        list(read_queries(QueriesConfig(file=str(path))))


@pytest.mark.parametrize("name", ["x" * 5000, "a\x00b", "corpus.jsonl.gz", "corpus.jsonl.zst", "\x1b[31m"])
def test_names_that_are_no_file_are_refused(tmp_path, name, monkeypatch, capsys):
    if name.startswith("corpus"):
        written(tmp_path / name, b"x")
    refusal(tmp_path / name)
    words = ["dataworth", "index", "--model", "m", "--corpus", str(tmp_path / name)]
    if "\x00" not in name and not name.startswith("corpus"):
        monkeypatch.setattr(sys, "argv", words)
        assert cli._exit_code() == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.strip().isprintable()
