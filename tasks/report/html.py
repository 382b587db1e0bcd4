"""The report: one self-contained HTML page from a template that escapes every value."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tasks.report.numbers import interval, number, percent
from tasks.report.summary import Summary

__all__ = ["report_html"]


def _bars(sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Places of the values' bars and intervals on an axis from the lowest to the highest end, in per cent."""
    ends = [0.0, *(row["value"] for row in sources)]
    ends += [row[end] for row in sources for end in ("low", "high") if row[end] is not None]
    lowest, highest = min(ends), max(ends)
    scale = 100.0 / (highest - lowest) if highest > lowest else 0.0

    def place(value: float) -> float:
        return round((value - lowest) * scale, 3)

    return [
        {
            **row,
            "bar": (place(min(row["value"], 0.0)), round(abs(row["value"]) * scale, 3)),
            "zero": place(0.0),
            "whisker": None
            if row["low"] is None
            else (place(row["low"]), round((row["high"] - row["low"]) * scale, 3)),
        }
        for row in sources
    ]


def _differs(sources: list[dict[str, Any]]) -> bool:
    """Whether a payout is not the share, so that it is worth a column of its own."""
    pairs = [(row.get("payout"), row["share"]) for row in sources]
    return any(payout is not None and (share is None or abs(payout - share) > 1e-9) for payout, share in pairs)


def report_html(title: str, summary: Summary, confidence: float) -> str:
    """The whole page.

    Args:
        title: of the page.
        summary: what it says.
        confidence: coverage of the intervals, between 0 and 1.
    """
    environment = Environment(
        loader=PackageLoader("tasks.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(number=number, percent=percent, bars=_bars, differs=_differs)
    environment.globals["interval"] = interval
    return environment.get_template("report.html").render(title=title, summary=summary, confidence=confidence)
