"""Two results folders side by side: a table for the terminal, and a page."""

from pathlib import Path

from dataworth.command.terminal import table
from dataworth.storage.durable import replace_file
from dataworth.storage.errors import InputError
from dataworth.tasks.report.numbers import percent, points
from dataworth.tasks.report.page.comparison import Comparison, compared
from dataworth.tasks.report.page.html import comparison_html, likeness
from dataworth.tasks.report.results.folder import read_results

__all__ = ["compare"]

MAX_CHARACTERS = 60


def compare(first: str, second: str, html: str | None) -> str:
    """The text that `dataworth compare` prints; also writes the page if a file is named for it.

    Args:
        first, second: results folders.
        html: file of the page; None for none.

    Raises:
        InputError: a folder that holds no valuation, or a page that cannot be written.
    """
    comparison = compared(read_results(first), read_results(second))
    if html is not None:
        path = Path(html)
        if path.is_dir():
            raise InputError(f"--html {html}: is a folder, expected a file to write")
        try:
            replace_file(path, comparison_html(comparison).encode())
        except OSError as error:
            raise InputError(f"--html {html}: cannot be written ({error.strerror})") from None
    return _text(comparison)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"


def _text(comparison: Comparison) -> str:
    blocks = [f"A  {comparison.first}", f"B  {comparison.second}"]
    if comparison.warnings:
        blocks += ["", *comparison.warnings]
    rows = [
        [
            _cut(pair.name),
            percent(pair.first.share) if pair.first else "not there",
            percent(pair.second.share) if pair.second else "not there",
            points(pair.difference),
            pair.intervals,
        ]
        for pair in comparison.sources
    ]
    blocks += ["", "parts of each run's positive values"]
    blocks += [table(["source", "in A", "in B", "B - A", "intervals overlap"], rows)]
    blocks += ["", table(["how alike", ""], likeness(comparison), n_text=2)]
    differing = [[_cut(cell) for cell in row] for row in comparison.parameters]
    if differing:
        blocks += ["", table(["parameter", "A", "B"], differing, n_text=3)]
    else:
        blocks += ["", "no parameter differs"]
    return "\n".join(blocks)
