"""Figures: what is drawn, for values of any shape and names of any kind; equal bytes for equal values."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from dataworth.tasks.report.page.bars import MAX_BARS
from dataworth.tasks.report.page.figures import (
    BAD,
    GOOD,
    MAX_CELLS,
    MAX_LABEL,
    drawn_figures,
    label,
    overlap_figure,
    score_figure,
    share_figure,
    value_figure,
)

HOSTILE = ["$x^2$ \\frac{1}{2} $", "new\nline\x00\t", "x" * 200, "語文資料庫" * 40, "<script>", "", "العربية", "{0}%s"]


def values(n_sources, n_queries, sign=None, known=True):
    generator = np.random.default_rng(n_sources)
    table = generator.normal(size=(n_queries, n_sources))
    table = table if sign is None else sign * np.abs(table)
    names = [*HOSTILE, *(f"source {number}" for number in range(n_sources))][:n_sources]
    rows = [
        {
            "query_id": query,
            "source": name,
            "value": value,
            "low": value - 0.5 if known else np.nan,
            "high": value + 0.5 if known else np.nan,
            "share": max(value, 0.0) if sign != -1 else np.nan,
        }
        for query, line in [*((f"q{n} $y$", table[n]) for n in range(n_queries)), ("*", table.sum(axis=0))]
        for name, value in zip(names, line, strict=True)
    ]
    return pd.DataFrame(rows)


def overlap_of(table):
    names = table["source"].drop_duplicates()
    return pd.DataFrame(
        [{"source": a, "other": b, "overlap": 0.5 if a < b else None} for a, b in combinations(names, 2)],
        columns=["source", "other", "overlap"],
    )


def total_rows(table):
    return table[table["query_id"] == "*"].sort_values("value", ascending=False).to_dict("records")


@pytest.mark.parametrize(
    ("n_sources", "n_queries", "sign", "known"),
    [(1, 1, None, False), (2, 3, -1, True), (8, 2, None, True), (200, 50, None, False)],
)
def test_the_same_values_give_the_same_bytes(n_sources, n_queries, sign, known):
    table = values(n_sources, n_queries, sign, known)
    scores = np.random.default_rng(1).standard_t(3, 500).astype(np.float32)
    first = drawn_figures(table, scores, overlap_of(table))
    again = drawn_figures(table.copy(), scores.copy(), overlap_of(table))
    expected = {"shares.png", "values.png", "scores.png"} | ({"overlap.png"} if n_sources > 1 else set())
    assert first.keys() == expected
    assert first == again
    for image in first.values():
        assert image.startswith(b"\x89PNG\r\n\x1a\n")
        assert b"tEXt" not in image  # neither a date nor a version
        width, height = (int.from_bytes(image[at : at + 4]) for at in (16, 20))
        assert 300 < width < 3000
        assert 150 < height < 3000


def test_only_what_there_are_values_for_is_drawn():
    assert drawn_figures(values(2, 1)).keys() == {"shares.png", "values.png"}
    assert score_figure(np.array([np.nan, np.inf])) is None
    assert value_figure(values(2, 0)) is None


def test_bars_have_the_lengths_of_the_shares():
    table = values(3, 1)
    table.loc[table["query_id"] == "*", "value"] = [3.0, -2.0, 1.0]
    (axes,) = share_figure(total_rows(table)).axes
    assert [bar.get_width() for bar in axes.patches] == [0.75, 0.25, -0.5]
    assert [to_hex(bar.get_facecolor()) for bar in axes.patches] == [GOOD, GOOD, BAD]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the largest on top


def test_the_largest_are_shown_and_the_others_counted():
    (axes,) = share_figure(total_rows(values(200, 2))).axes
    assert len(axes.patches) == MAX_BARS + 1
    assert axes.get_yticklabels()[-1].get_text() == "170 others"


def test_the_heat_map_is_centred_and_cut():
    figure = value_figure(values(200, 105))
    image = figure.axes[0].images[0]
    assert image.get_array().shape == (MAX_CELLS, MAX_CELLS)
    assert image.norm.vmin == -image.norm.vmax
    assert figure.axes[0].get_title(loc="left") == "value of 40 of 200 sources for 40 of 105 queries"


def test_overlaps_are_symmetric_and_unknown_ones_are_grey():
    overlap = pd.DataFrame({"source": ["a", "a", "b"], "other": ["b", "c", "c"], "overlap": [0.5, None, -0.25]})
    image = overlap_figure(overlap, ["c", "a", "b", "withheld"]).axes[0].images[0]
    expected = [[1, np.nan, -0.25], [np.nan, 1, 0.5], [-0.25, 0.5, 1]]
    np.testing.assert_array_equal(image.get_array().filled(np.nan), expected)


@pytest.mark.parametrize("name", HOSTILE)
def test_labels_are_one_short_line(name):
    found = label(name)
    assert 0 < len(found) <= MAX_LABEL
    assert found.isprintable()
    assert label("$x^2$") == "$x^2$"
    assert label("a" * 50 + "b" * 50) == "a" * 23 + "…" + "b" * 12
