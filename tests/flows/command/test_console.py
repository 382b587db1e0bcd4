"""What a run writes where there is no terminal, and what of Prefect's log it leaves out."""

import io
import logging

import prefect
import pytest

from dataworth.command.console import Console

OURS, THEIRS = "/x/dataworth/tasks/steps.py", f"{prefect.__path__[0]}/flow_engine.py"


@pytest.fixture
def written():
    """Emits a record, and returns all that was written so far."""
    stream = io.StringIO()
    console = Console(stream=stream, styles={})

    def write(text, path=OURS, level=logging.INFO, name="prefect.task_runs", error=None):
        exc_info = None if error is None else (type(error), error, None)
        console.emit(logging.LogRecord(name, level, path, 1, text, (), exc_info))
        return stream.getvalue().splitlines()

    return write


def test_a_run_says_what_it_does_and_prefect_what_goes_wrong(written):
    written("Beginning flow run 'x'", THEIRS, name="prefect.flow_runs")
    written("Finished in state Failed('…')", THEIRS, logging.ERROR)
    written("16 documents [a.jsonl]")
    (line,) = written("Finished in state Completed()", THEIRS)
    assert line[8:] == "  16 documents [a.jsonl]"
    assert line[2] == line[5] == ":"
    assert written("retrying", THEIRS, logging.WARNING)[1][8:] == "  warning: retrying"
    assert "ValueError: unforeseen" in written("Encountered", THEIRS, logging.ERROR, error=ValueError("unforeseen"))[-1]


def test_a_warning_is_written_once(written):
    for _ in range(3):
        lines = written("one row\nis left out", level=logging.WARNING)
    assert [line[8:] for line in lines] == ["  warning: one row\\nis left out"]


def test_other_logs_are_as_prefect_writes_them(written):
    assert written("listening", THEIRS, name="prefect.server") == ["listening"]
