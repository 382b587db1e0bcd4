"""Values of sources as bars with whiskers on one axis, the same in the report and in its figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dataworth.tasks.report.numbers import number, percent

__all__ = ["MAX_BARS", "Bar", "Chart", "chart", "positive_total"]

MAX_BARS = 30

# Of the bars' own span: an interval of two documents would otherwise leave of every bar a line.
MAX_BEYOND = 1.0

# Of a total far smaller than the values themselves, shares tell nothing, and may be larger than any number.
LEAST_UNIT = 1e-9

TICK_STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Bar:
    """One source, or several as one.

    Args:
        name: of the source; empty where there are several.
        value: in the chart's unit.
        low, high: ends of the interval; None where it is not known.
        n_sources: how many it stands for.
        share: part of the positive total; None where nobody's value is positive.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    n_sources: int
    share: float | None

    @property
    def label(self) -> str:
        return self.name if self.n_sources == 1 else f"{self.n_sources:,} others"


@dataclass(frozen=True)
class Chart:
    """Bars on one axis.

    Args:
        bars: largest value first, several as one last.
        lowest, highest: ends of the axis; 0 is between them.
        in_shares: the unit is the positive total; else it is that of the values.
    """

    bars: tuple[Bar, ...]
    lowest: float
    highest: float
    in_shares: bool

    def place(self, value: float) -> float:
        """Where a value is on the axis, per cent of its length; values beyond the axis are at its end."""
        inside = min(max(value, self.lowest), self.highest)
        return round((inside - self.lowest) / (self.highest - self.lowest) * 100.0, 3)

    def length(self, value: float) -> float:
        """Length of the bar of a value, per cent of the axis."""
        return round(abs(value) / (self.highest - self.lowest) * 100.0, 3)

    def beyond(self, value: float) -> bool:
        """Whether the axis ends before it."""
        return not self.lowest <= value <= self.highest

    @property
    def ticks(self) -> list[float]:
        """Round numbers on the axis, at most six, 0 among them."""
        rough = (self.highest - self.lowest) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(size * power for size in TICK_STEPS if size * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.lowest / step - 1e-9), math.floor(self.highest / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]

    @property
    def tick_labels(self) -> list[str]:
        digits = 0 if all(abs(tick * 100 - round(tick * 100)) < 1e-9 for tick in self.ticks) else 1
        return [percent(tick, digits) if self.in_shares else number(tick) for tick in self.ticks]


def positive_total(rows: Sequence[dict[str, Any]]) -> float | None:
    """Sum of the positive values; None where there is none."""
    total = sum(row["value"] for row in rows if row["value"] > 0)
    return total if total > 0 else None


def _end(value: float | None, unit: float) -> float | None:
    return None if value is None or math.isnan(value) else value / unit


def chart(rows: Sequence[dict[str, Any]], most: int | None = None) -> Chart:
    """Bars of value / positive total, which is the share of a source of positive value.

    An interval is divided by the same total, taken as known. Where no value is positive, or what is positive is nothing
    beside the negative values, the unit is that of the values.

    Args:
        rows: rows of VALUES of one query and level, largest value first.
        most: bars of a source by itself, those largest in size; the others are added up, their interval is not known.
    """
    total = positive_total(rows)
    in_shares = total is not None and total >= LEAST_UNIT * max(abs(row["value"]) for row in rows)
    unit = total if total is not None and in_shares else 1.0
    order = sorted(range(len(rows)), key=lambda number: -abs(rows[number]["value"]))
    alone = sorted(order if most is None else order[:most])
    bars = [
        Bar(row["source"], row["value"] / unit, _end(row["low"], unit), _end(row["high"], unit), 1, row["share"])
        for row in (rows[number] for number in alone)
    ]
    others = [rows[number] for number in order[len(alone) :]]
    if len(others) == 1:
        alone = sorted([*alone, order[-1]])
        return chart([rows[number] for number in alone])
    if others:
        share = sum(row["share"] or 0.0 for row in others) if total else None
        bars.append(Bar("", sum(row["value"] for row in others) / unit, None, None, len(others), share))
    lowest, highest = _axis(bars)
    return Chart(tuple(bars), lowest, highest, in_shares)


def _axis(bars: Sequence[Bar]) -> tuple[float, float]:
    values = [0.0, *(bar.value for bar in bars)]
    lowest, highest = min(values), max(values)
    reach = (highest - lowest) * MAX_BEYOND
    if reach == 0:
        return 0.0, 1.0
    ends = [end for bar in bars for end in (bar.low, bar.high) if end is not None]
    return max(min(lowest, *ends, lowest), lowest - reach), min(max(highest, *ends, highest), highest + reach)
