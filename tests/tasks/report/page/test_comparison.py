"""Two valuations compared, by hand."""

import re

import pandas as pd
import pytest

from dataworth.storage.schema import PASSAGES, VALUES
from dataworth.tasks.report.page.comparison import compared, rank_correlation
from dataworth.tasks.report.page.html import comparison_html, likeness
from dataworth.tasks.report.results.folder import Results

EVIL = "<script>alert(1)</script> \"&' $x^2$ {{ 7 * 7 }}"


def results(name, values, documents, queries="q", corpus="c", game="additive", **parameters):
    """`values`: source → (value, low, high)."""
    total = sum(value for value, _, _ in values.values() if value > 0)
    rows = [
        {
            "query_id": query, "source": source, "value": value, "standard_error": None, "low": low, "high": high,
            "share": max(value, 0.0) / total if total else None, "n_documents": 2, "n_tokens": 9, "game": game,
            "semivalue": "shapley", "grouping": "source", "level": 1,
        }
        for query in ("q0", "*")
        for source, (value, low, high) in values.items()
    ]  # fmt: skip
    passages = [
        {
            "query_id": "*", "rank": rank, "document_id": document, "source": "s", "score": score,
            "relative_score": 0.0, "window_start": 0, "text": "t",
        }
        for rank, (document, score) in enumerate(documents.items(), 1)
    ]  # fmt: skip
    return Results(
        name=name,
        title=name,
        parameters={"results": name, "projection": {"rank": 4}, **parameters},
        fingerprints={"model": "m", "corpus": corpus, "queries": queries},
        sources=pd.DataFrame(rows, columns=VALUES.names),
        documents=pd.DataFrame(passages, columns=PASSAGES.names),
    )


FIRST = results(
    "one",
    {"a": (6.0, 5.0, 7.0), "b": (3.0, 1.0, 5.0), "c": (1.0, None, None), "gone": (-5.0, -6.0, -4.0)},
    {"d1": 9.0, "d2": 5.0, "d3": 4.0, "d4": 1.0},
)
# In parts of the positive total, 20: a 0.2 [0.1, 0.3], b 0.6 [0.4, 0.8], c 0.1, new 0.1.
SECOND = results(
    "two",
    {"a": (4.0, 2.0, 6.0), "b": (12.0, 8.0, 16.0), "c": (2.0, 1.0, 3.0), "new": (2.0, 0.0, 4.0)},
    {"d3": 8.0, "d2": 7.0, "d9": 2.0, "d1": 1.0},
    projection={"rank": 8},
)


def test_shares_differences_and_intervals():
    found = {pair.name: pair for pair in compared(FIRST, SECOND).sources}
    assert list(found) == ["a", "b", "c", "new", "gone"]
    assert found["a"].difference == pytest.approx(0.2 - 0.6)
    assert found["b"].difference == pytest.approx(0.6 - 0.3)
    assert found["c"].difference == pytest.approx(0.0)
    assert found["new"].difference is None
    # a: [0.5, 0.7] and [0.1, 0.3]; b: [0.1, 0.5] and [0.4, 0.8]
    assert [found[name].intervals for name in "abc"] == ["no", "yes", "unknown"]
    assert found["gone"].intervals == "unknown"
    assert found["gone"].first.value == -0.5


def test_what_is_in_one_of_them_and_what_differs():
    found = compared(FIRST, SECOND)
    assert (found.only_first, found.only_second) == (("gone",), ("new",))
    assert found.parameters == (("projection.rank", "4", "8"),)
    assert found.warnings == ()
    assert compared(FIRST, FIRST).parameters == ()


def test_rank_correlations():
    found = compared(FIRST, SECOND)
    # a, b, c rank 3, 2, 1 and 2, 3, 1: 1 - 6 * 2 / (3 * 8)
    assert found.source_correlation == pytest.approx(0.5)
    # d1, d2, d3 rank 3, 2, 1 and 1, 2, 3
    assert found.document_correlation == pytest.approx(-1.0)
    assert found.n_documents == (4, 4, 3)
    assert ("top documents in both", "3 of 4 in A and 4 in B") in likeness(found)
    assert rank_correlation([1.0], [1.0]) is None
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) is None
    assert rank_correlation([1, 2, 2, 5], [0, 3, 3, 9]) == pytest.approx(1.0)


def test_other_queries_corpora_and_games_are_warned_of():
    other = results("x", {"a": (1.0, 0.0, 2.0)}, {}, queries="other", corpus="other", game="newton")
    found = compared(FIRST, other)
    assert [sentence.split(":")[0] for sentence in found.warnings] == [
        "The queries differ", "The corpora differ", "The values are of different games",
    ]  # fmt: skip
    assert ("game of the values", "additive", "newton") in found.parameters
    assert found.source_correlation is None
    negative = compared(FIRST, results("x", {"a": (-1.0, None, None)}, {}))
    assert negative.warnings == ("In one of them no source has a positive value: it has no shares.",)
    assert negative.sources[0].difference is None


def test_the_page_is_inert_and_its_bars_proportional():
    first = results(EVIL, {EVIL: (3.0, 2.0, 4.0), "b": (1.0, 0.0, 2.0)}, {EVIL: 1.0}, note=EVIL)
    second = results("two", {EVIL: (1.0, 0.5, 1.5), "b": (3.0, 2.0, 4.0)}, {EVIL: 1.0})
    page = comparison_html(compared(first, second))
    assert "<script" not in page
    assert "{{ 7 * 7 }}" in page
    assert not re.search(r"(src|href)=[\"'](?!#)", page)
    assert "default-src 'none'" in page
    widths = re.findall(r'<rect class="(plus|second)" x="[\d.]+%" width="([\d.]+)%"', page)
    assert [kind for kind, _ in widths] == ["plus", "second"] * 2
    lengths = [float(width) for _, width in widths]
    assert lengths[0] == lengths[3] == pytest.approx(3 * lengths[1], abs=0.01)
    assert "<td>-50.0</td>" in page
    assert "<td>50.0% … 100.0%</td>" in page
