"""The pages: self-contained HTML from templates that escape every value."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tasks.report.bars import MOST_BARS, chart
from tasks.report.certainty import certainty
from tasks.report.numbers import interval, number, percent
from tasks.report.summary import Summary
from tasks.report.words import Vocabulary

__all__ = ["report_html"]


def _differs(sources: list[dict[str, Any]]) -> bool:
    """Whether a payout is not the share, so that it is worth a column of its own."""
    pairs = [(row.get("payout"), row["share"]) for row in sources]
    return any(payout is not None and (share is None or abs(payout - share) > 1e-9) for payout, share in pairs)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tasks.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(number=number, percent=percent, chart=chart, differs=_differs)
    environment.globals.update(interval=interval, most_bars=MOST_BARS)
    return environment


def report_html(title: str, summary: Summary, confidence: float) -> str:
    """The page of a valuation.

    Args:
        title: of the page.
        summary: what it says.
        confidence: coverage of the intervals, between 0 and 1.
    """
    asked = {query.id: f"{query.prompt}{query.completion}" for query in summary.queries}
    lists = [summary.most, summary.least, *(rows for query in summary.queries for rows in (query.most, query.least))]
    vocabulary = Vocabulary(row["text"] for rows in lists for row in rows)
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            summary=summary,
            coverage=percent(confidence, 0 if (confidence * 100) % 1 < 1e-9 else 1),
            certainty=certainty(summary.sources, summary.notes),
            shared=vocabulary.shared,
            asked=asked,
            all_asked="\n".join(asked.values()),
        )
    )
