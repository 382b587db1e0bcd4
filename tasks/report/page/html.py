"""The pages: self-contained HTML from templates that escape every value."""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dataworth.tasks.report.numbers import interval, number, percent, points
from dataworth.tasks.report.page.bars import MAX_BARS, Bar, chart
from dataworth.tasks.report.page.certainty import certainty
from dataworth.tasks.report.page.comparison import Comparison
from dataworth.tasks.report.page.marks import marked, said
from dataworth.tasks.report.page.words import Vocabulary
from dataworth.tasks.report.results.summary import MOST_SOURCES, Summary
from dataworth.tasks.visible import visible

__all__ = ["audit_page", "comparison_html", "likeness", "report_html"]

# What a page of many sources and queries shows: the rest is in the tables beside it.
MOST_ROWS, MOST_QUERIES, LEAST_QUERIES, MOST_BYTES = 200, 100, 3, 2_900_000
# Of sources that are only in one of two valuations.
MAX_NAMES = 8
MAX_LETTERS = 60


def _differs(sources: list[dict[str, Any]]) -> bool:
    """Whether a payout is not the share, so that it is worth a column of its own."""
    pairs = [(row.get("payout"), row["share"]) for row in sources]
    return any(payout is not None and (share is None or abs(payout - share) > 1e-9) for payout, share in pairs)


def _place(row: dict[str, Any]) -> str:
    """Where a source stands, as far as its interval tells: "1", or "2 … 4"."""
    best, worst = row.get("place_best"), row.get("place_worst")
    if best is None or worst is None:
        return "unknown"
    return f"{best:,.0f}" if best == worst else f"{best:,.0f} … {worst:,.0f}"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dataworth.tasks.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(
        number=number,
        percent=percent,
        points=points,
        chart=chart,
        differs=_differs,
        visible=visible,
        marked=marked,
        said=said,
    )
    environment.globals.update(interval=interval, place=_place, most_bars=MAX_BARS)
    return environment


def report_html(title: str, summary: Summary, confidence: float) -> str:
    """The page of a valuation, of so many of its queries that it stays below MOST_BYTES.

    Args:
        title: of the page.
        summary: what it says.
        confidence: coverage of the intervals, between 0 and 1.
    """
    n_queries = MOST_QUERIES
    while True:
        page = _report(title, summary, confidence, n_queries)
        n_bytes = len(page.encode())
        if n_bytes <= MOST_BYTES or n_queries <= LEAST_QUERIES:
            return page
        n_queries = max(LEAST_QUERIES, min(n_queries, len(summary.queries)) * MOST_BYTES // n_bytes - 1)


def _report(title: str, summary: Summary, confidence: float, n_queries: int) -> str:
    asked = {query.id: f"{query.prompt}{query.completion}" for query in summary.queries}
    script = (Path(__file__).parents[1] / "templates" / "find.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = (rows for query in summary.queries[:n_queries] for rows in (query.most, query.least))
    vocabulary = Vocabulary(row["text"] for rows in (summary.most, summary.least, *shown) for row in rows)
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            summary=summary,
            account=summary.account,
            coverage=percent(confidence, 0 if (confidence * 100) % 1 < 1e-9 else 1),
            certainty=certainty(summary.sources, summary.notes),
            shared=vocabulary.shared,
            asked=asked,
            all_asked="\n".join(asked.values()),
            all_tokens=sum(row["n_tokens"] for row in summary.sources),
            most_rows=MOST_ROWS,
            most_rows_of_query=MOST_SOURCES,
            most_queries=n_queries,
            script=Markup(script),
            script_hash=f"sha256-{digest}",
        )
    )


def likeness(comparison: Comparison) -> list[tuple[str, str]]:
    """Rank correlations, and what is only in one of them: label and what is found."""
    n_first, n_second, n_both = comparison.n_documents
    rows = [
        ("rank correlation of the sources' values", _correlation(comparison.source_correlation)),
        ("top documents in both", f"{n_both} of {n_first} in A and {n_second} in B"),
        ("rank correlation of those documents' scores", _correlation(comparison.document_correlation)),
    ]
    for run, names in (("A", comparison.only_first), ("B", comparison.only_second)):
        if names:
            more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
            rows.append((f"sources only in {run}", ", ".join(name[:MAX_LETTERS] for name in names[:MAX_NAMES]) + more))
    return rows


def _correlation(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _part_interval(in_shares: bool) -> Callable[[Bar | None], str]:
    def written(bar: Bar | None) -> str:
        if bar is None or bar.low is None or bar.high is None:
            return "unknown"
        return f"{percent(bar.low)} … {percent(bar.high)}" if in_shares else interval(bar.low, bar.high)

    return written


def comparison_html(comparison: Comparison) -> str:
    """The page of two valuations side by side."""
    return (
        _environment()
        .get_template("compare.html")
        .render(
            title="Two valuations",
            comparison=comparison,
            sentences=likeness(comparison),
            part_interval=_part_interval(comparison.axis.in_shares),
        )
    )


def audit_page(**content: Any) -> str:
    """The page of an audit, from what its template names (see dataworth.tasks.report.page.audit)."""
    return _environment().get_template("audit.html").render(**content)
