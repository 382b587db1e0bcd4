"""What a terminal cannot show, what nobody reads any more, and folders that cannot be written: never a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataworth.storage.schema import PASSAGES

ROOT = Path(__file__).parents[3]
MAIN = "from dataworth.command.cli import main; main()"


@pytest.fixture
def results(tmp_path) -> Path:
    """A folder that `dataworth top` takes for a valuation: more passages than a pipe holds."""
    folder = tmp_path / "results"
    folder.mkdir()
    rows = [
        {"query_id": "*", "rank": number, "document_id": f"d{number}", "source": "sé", "text": "語 " * 50}
        | {"score": 1.0, "relative_score": 1.0, "window_start": 0}
        for number in range(1, 1001)
    ]
    pq.write_table(pa.Table.from_pylist(rows, PASSAGES), folder / "documents.parquet")
    (folder / "valuation.json").write_text(json.dumps({"parameters": {}, "fingerprints": {}}))
    return folder


def run(*words, stdout=subprocess.PIPE, **environment):
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"s\\xe9"),
        ({"PYTHONIOENCODING": "ascii:strict"}, b"s\\xe9"),
        ({"PYTHONIOENCODING": "latin-1"}, b"s\xe9"),
        ({"PYTHONIOENCODING": "utf-8"}, "sé".encode()),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"s\\xe9"),
    ],
    ids=str,
)
def test_what_cannot_be_shown_is_escaped(results, environment, shown):
    done = run("top", "--results", results, "--count", 2, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(shown) == 2
    refused = run("top", "--results", "sé 語", **environment)
    assert refused.returncode == 2
    named = b"s\\udcc3\\udca9" if "LC_ALL" in environment else shown  # there the argument is bytes that are no text
    assert refused.stderr.startswith(b"dataworth: --results " + named)
    assert refused.stderr.count(b"\n") == 1


def test_processes_that_are_started_escape_it_too():
    program = (
        "import subprocess, sys; from dataworth.command.terminal import escape_what_is_not_shown as escape; escape();"
        "subprocess.run([sys.executable, '-c', r'print(\"\\u8a9e\")'], check=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    assert done.stdout == b"\\u8a9e\n"


@pytest.mark.parametrize("words", [("top", "--count", 1000), ("top",), ("compare",), ("what-if", "--without", "x")])
def test_a_reader_who_leaves_is_no_error(results, words):
    """As `head -1` does, here before the first line."""
    command, *further = words
    given = [results, results] if command == "compare" else ["--results", results, *further]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nobody:
        done = run(command, *given, stdout=nobody)
    if command == "top":
        assert (done.returncode, done.stderr) == (0, b"")
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipeError" not in done.stderr


@pytest.mark.parametrize("words", [("--help",), ("value", "--help"), ("completion", "bash")])
def test_help_that_nobody_reads(words):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nobody:
        assert run(*words, stdout=nobody).stderr == b""


def test_a_connection_that_breaks_is_told(monkeypatch, capsys, tmp_path):
    """Click takes it for a closed output, and would end without a word."""
    from dataworth.command import cli

    (tmp_path / "c.jsonl").write_text("{}")

    def broken(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("dataworth.index_corpus.index_corpus", broken)
    monkeypatch.setattr(sys, "argv", ["dataworth", "index", "--model", "m", "--corpus", str(tmp_path / "c.jsonl")])
    assert cli._exit_code() == 1
    assert capsys.readouterr().err.startswith("dataworth: a connection was closed by the other side")
