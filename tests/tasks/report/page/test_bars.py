"""Places on an axis by hand: shares, clipped whiskers, several sources as one."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataworth.tasks.report.page.bars import chart, positive_total


def row(name, value, low=None, high=None, share=None):
    return {"source": name, "value": value, "low": low, "high": high, "share": share}


def test_bars_are_parts_of_the_positive_total():
    drawn = chart([row("a", 6.0, 3.0, 9.0, 0.75), row("b", 2.0, None, None, 0.25), row("c", -4.0, -5.0, math.nan, 0.0)])
    assert drawn.in_shares
    assert [(bar.value, bar.low, bar.high) for bar in drawn.bars] == [
        (0.75, 0.375, 1.125), (0.25, None, None), (-0.5, -0.625, None),
    ]  # fmt: skip
    assert (drawn.lowest, drawn.highest) == (-0.625, 1.125)
    assert drawn.place(0.25) == 50.0
    assert drawn.length(-0.875) == 50.0
    assert drawn.ticks == [-0.5, 0.0, 0.5, 1.0]
    assert drawn.tick_labels == ["-50%", "0%", "50%", "100%"]


def test_whiskers_beyond_the_axis_are_cut():
    drawn = chart([row("a", 1.0, -1e9, math.inf), row("b", 1.0, 0.5, 1.5)])
    assert (drawn.lowest, drawn.highest) == (-0.5, 1.0)
    first, second = drawn.bars
    assert drawn.beyond(first.low)
    assert drawn.beyond(first.high)
    assert (drawn.place(first.low), drawn.place(first.high)) == (0.0, 100.0)
    assert not drawn.beyond(second.high)


def test_small_sources_are_added_up():
    rows = [row(f"s{number}", 10.0 - number, share=(10.0 - number) / 40) for number in range(5)]
    drawn = chart([*rows, row("bad", -9.5, share=0.0)], most=3)
    assert [bar.label for bar in drawn.bars] == ["s0", "s1", "bad", "3 others"]
    assert drawn.bars[-1].value == pytest.approx((8 + 7 + 6) / 40)
    assert drawn.bars[-1].share == pytest.approx((8 + 7 + 6) / 40)
    assert drawn.bars[-1].low is None
    assert [bar.label for bar in chart(rows, most=4).bars] == ["s0", "s1", "s2", "s3", "s4"]


def test_without_a_positive_value_bars_are_values():
    drawn = chart([row("a", -1.0, -3.0, 1.0), row("b", -4.0)])
    assert not drawn.in_shares
    assert [bar.value for bar in drawn.bars] == [-1.0, -4.0]
    assert (drawn.lowest, drawn.highest) == (-4.0, 1.0)
    assert positive_total([row("a", -1.0)]) is None


def test_a_total_that_is_nothing_beside_the_values_is_no_unit():
    assert not chart([row("a", 1e-305), row("b", -2714.0)]).in_shares
    assert chart([row("a", 1e-305), row("b", -1e-304)]).in_shares


@given(st.lists(st.floats(-1e12, 1e12, allow_subnormal=False), max_size=40), st.integers(1, 10))
@example([1.5104311806954445e-305, -2714.0], 1)
def test_everything_is_on_the_axis(values, most):
    rows = [row(str(number), value, value - 1, value + 1) for number, value in enumerate(sorted(values, reverse=True))]
    drawn = chart(rows, most)
    assert drawn.lowest <= 0 <= drawn.highest
    assert drawn.lowest < drawn.highest
    assert 0.0 in drawn.ticks
    assert len(drawn.ticks) <= 7
    assert sum(bar.n_sources for bar in drawn.bars) == len(values)
    places = [drawn.place(bar.value) for bar in drawn.bars]
    assert all(0 <= place <= 100 for place in places)
    unit = positive_total(rows) if drawn.in_shares else 1.0
    assert np.isclose(
        sum(bar.value for bar in drawn.bars) * unit,
        sum(values),
        rtol=1e-6,
        atol=1e-6 * max(map(abs, values), default=0),
    )
