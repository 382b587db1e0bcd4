"""Lines that would fill memory when they are parsed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataworth.storage.errors import InputError
from dataworth.tasks.corpus import rows
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.readers import read_documents, read_queries
from tests.tasks.corpus.test_parquet import under_limit

ROOT = Path(__file__).parents[3]
ROW = '"id": "a", "source": "s", "text": "one two"'


def read(path):
    return list(read_documents(CorpusConfig(files=[str(path)])))


def refusal(path):
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


def written(path, text):
    path.write_text(text)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("part", ["{},", "[],", '[[[[{"a":[', "1,", '"a",', '"\\"'])
def test_a_line_of_very_many_values_takes_no_memory(tmp_path, part):
    """60 MB on disk, up to 2 GB when they are parsed."""
    path = written(tmp_path / "c.jsonl", f'{{{ROW}, "x": [{part * (60_000_000 // len(part))}')
    said, n_read = under_limit(path, 3 * 2**29)
    assert n_read == 0
    assert "c.jsonl, line 1: has more than 1,048,576 values" in said or ("broken JSON" in said and part == '"\\"')


def test_a_long_text_full_of_commas_is_read(tmp_path):
    text = '1,[2],{"a": "\\ }' * 200_000
    (found,) = read(written(tmp_path / "c.jsonl", json.dumps({"id": "a", "source": "s", "text": text}) + "\n"))
    assert found.text == text


def test_values_are_counted_outside_of_strings(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LONG_LINE_CHARACTERS", 10)
    monkeypatch.setattr(rows, "MAX_VALUES", 8)
    assert len(read(written(tmp_path / "c.jsonl", f'{{{ROW}, "x": [1, "{"[,{" * 50}"]}}'))) == 1
    assert "has more than 8 values" in refusal(written(tmp_path / "c.jsonl", f'{{{ROW}, "x": [1, 2, 3, 4, 5, 6]}}'))


def test_a_row_of_csv_that_goes_over_many_lines_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 1000)
    path = written(tmp_path / "c.csv", "id,source,text\na,s,one\nb,s," + '"\n",' * 1000)
    assert "the row is longer than 1,000 bytes" in refusal(path)
    assert len(read(written(tmp_path / "c.csv", "id,source,text\n" + 'a,s,"one\n"\n'.join(["", ""])))) == 1


ENDLESS = {"digits": "9" * 5000, "negative": "-" + "9" * 100_000, "lists": "[" * 100_000, "objects": '{"a":' * 100_000}


@pytest.mark.parametrize("value", ENDLESS.values(), ids=ENDLESS)
def test_numbers_and_nesting_without_end_are_a_sentence(tmp_path, value):
    said = refusal(written(tmp_path / "c.jsonl", f'{{{ROW}, "x": {value}}}'))
    assert "c.jsonl, line 1: broken JSON (" in said


def test_no_memory_is_a_sentence(tmp_path, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(rows.json, "loads", full)
    path = written(tmp_path / "c.jsonl", f"{{{ROW}}}\n")
    assert refusal(path) == f"{path}: a document does not fit into memory; cut it into several"
    with pytest.raises(InputError, match=r"c\.jsonl: a document does not fit into memory"):
        list(read_queries(QueriesConfig(file=str(path))))


@pytest.mark.parametrize("place", ["--corpus", "--queries", "--config"])
def test_a_pipe_is_refused_at_the_command_line(tmp_path, place):
    """Before anything heavy is imported, and without waiting for somebody who writes to it."""
    os.mkfifo(tmp_path / "c.jsonl")
    given = {"--corpus": tmp_path, "--queries": written(tmp_path / "q.jsonl", "x"), "--model": "m", "--results": "r"}
    given[place] = tmp_path / "c.jsonl"
    words = [str(word) for pair in given.items() for word in pair]
    program = (
        "import sys; from dataworth.command.cli import main; sys.argv = ['dataworth', 'value', *sys.argv[1:]]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=ROOT, check=False, timeout=900
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"dataworth: {tmp_path}/c.jsonl: is a pipe, expected a plain file")
    assert done.stderr.count("\n") == 1
