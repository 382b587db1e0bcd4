"""What a command says to a person, and what it keeps quiet about."""

import io
import logging
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from dataworth.storage.errors import DataworthError
from dataworth.tasks.report.numbers import number
from dataworth.tasks.visible import visible, without_password

# Where Prefect looks for the class of its handler, and which it is.
HANDLER, CONSOLE = "PREFECT_LOGGING_HANDLERS_CONSOLE_CLASS", "dataworth.command.console.Console"

__all__ = [
    "escape_what_is_not_shown",
    "mlflow_place",
    "passages",
    "say",
    "say_what_is_done",
    "sentences_for_known_errors",
    "table",
    "verbose",
]


def say(text: str = "") -> None:
    """Print lines on standard output; control characters in untrusted text cannot overwrite them."""
    try:
        print("\n".join(visible(without_password(line)) for line in text.split("\n")), flush=True)
    except BrokenPipeError:
        _nobody_reads()


def _nobody_reads() -> None:
    """Standard output was closed by whoever read it, as `head` does: the rest is for nobody, and no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # what is still held back goes there, too
    os.close(nowhere)


@contextmanager
def named_broken_pipe() -> Iterator[None]:
    """Turn a broken pipe in the block into an error with a message; Click would end without a word.

    Raises:
        DataworthError: a connection broke in the block.
    """
    try:
        yield
    except BrokenPipeError as error:
        raise DataworthError(
            "a connection was closed by the other side; the same command goes on from there"
        ) from error


def escape_what_is_not_shown() -> None:
    r"""Characters that the terminal's encoding lacks become `\xe9`, here and in every process started from here."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    encoding = os.environ.get("PYTHONIOENCODING", "").partition(":")[0]
    os.environ["PYTHONIOENCODING"] = f"{encoding}:backslashreplace"


def mlflow_place(url: str | None, run_id: str | None) -> str:
    """Where a valuation's MLflow run is."""
    return url or (f"{run_id} (dataworth ui shows it)" if run_id else "not logged; `dataworth publish` does it later")


def say_what_is_done() -> None:
    """Let Prefect, once it is imported, write on the terminal what runs say, and not what it notes of their tasks."""
    os.environ.setdefault(HANDLER, CONSOLE)


def verbose() -> click.Option:
    """An option that lets Prefect write every line of its log."""

    def write_all(_: click.Context, __: click.Parameter, is_wanted: bool) -> None:
        if is_wanted and os.environ.get(HANDLER) == CONSOLE:
            del os.environ[HANDLER]

    text = "Write every line of Prefect's log, states of tasks included."
    return click.Option(["--verbose"], is_flag=True, expose_value=False, is_eager=True, callback=write_all, help=text)


class _NoTraceback(logging.Filter):
    """Errors that are a sentence are logged as that sentence."""

    def filter(self, record: logging.LogRecord) -> bool:
        from dataworth.lifecycle.lost_server import is_loss, loss

        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if is_loss(error):
            error = loss(error)
        if isinstance(error, DataworthError | OSError | KeyboardInterrupt):
            said = visible(without_password(str(error))) or type(error).__name__
            record.msg, record.args = "stopped: %s", (said,)
            record.exc_info = None
            record.exc_text = None
        return True


def _nothing_but_critical(record: logging.LogRecord) -> bool:
    """Levels of Prefect's own loggers are set again whenever it sets its logging up."""
    return record.levelno >= logging.CRITICAL


def sentences_for_known_errors() -> None:
    """Let Prefect log this project's own errors without their traceback."""
    for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
        logger = logging.getLogger(name)
        if not any(isinstance(entry, _NoTraceback) for entry in logger.filters):
            logger.addFilter(_NoTraceback())
    # At the end of a run it warns of events that it then sends all the same. Of a server that is away they tell
    # again and again, with all that is in an event, what the run itself says once.
    quiet = ("EventsWorker", "prefect.events.clients", "prefect.concurrency", "prefect._internal.concurrency")
    for name in (*quiet, "websockets.client"):
        logger = logging.getLogger(name)
        if _nothing_but_critical not in logger.filters:
            logger.addFilter(_nothing_but_critical)
    # What could not be sent to the server is in the terminal; Python and Prefect would write of each such line there.
    logging.raiseExceptions = False


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], n_text: int = 1) -> str:
    """Aligned columns: the first `n_text`, which are text, to the left, the others to the right."""
    cells = [[visible(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        sized = list(zip(row, widths, strict=True))
        left = [cell.ljust(width) for cell, width in sized[:n_text]]
        return "  ".join([*left, *(cell.rjust(width) for cell, width in sized[n_text:])]).rstrip()

    return "\n".join([line(cells[0]), line(["-" * width for width in widths]), *(line(row) for row in cells[1:])])


def passages(rows: Iterable[dict[str, Any]], width: int = 100) -> str:
    """Passages with their score, source and id, shortened to two lines each."""
    blocks = []
    for row in rows:
        text = textwrap.shorten(visible(" ".join(row["text"].split())), 2 * width - 10, placeholder=" …")
        wrapped = textwrap.fill(text, width, initial_indent="       ", subsequent_indent="       ")
        blocks.append(
            f"  {row['rank']:>3}. {number(row['score'])}  {visible(row['source'])}  "
            f"{visible(row['document_id'])}\n{wrapped}"
        )
    return "\n".join(blocks)
