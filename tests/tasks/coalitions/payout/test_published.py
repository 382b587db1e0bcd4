"""What is published: payouts by query and level, small sources as one, nobody else's numbers changed."""

import numpy as np
import pandas as pd
import pytest

from dataworth.storage.schema import VALUES
from dataworth.tasks.coalitions.config import PayoutConfig
from dataworth.tasks.coalitions.payout.payouts import SMALL_SOURCES
from dataworth.tasks.coalitions.payout.published import published


def values(*rows):
    """Rows of VALUES of two queries from (source, value, share, documents, tokens)."""
    return pd.DataFrame(
        [
            {
                "query_id": query, "source": name, "value": value, "standard_error": 0.5, "low": value - 1,
                "high": value + 1, "share": share, "n_documents": n, "n_tokens": tokens, "game": "additive",
                "semivalue": "shapley", "grouping": "source", "level": 1,
                "error_coalitions": np.nan, "error_documents": 0.4, "error_queries": 0.3, "error_projection": np.nan,
                "error_checkpoint": np.nan, "kind": "marginal", "total": np.nan,
            }
            for query in ("q", "*") for name, value, share, n, tokens in rows
        ],
        columns=VALUES.names,
    )  # fmt: skip


TABLE = values(("a", 3.0, 0.75, 9, 90), ("b", 1.0, 0.25, 2, 30), ("c", -2.0, 0.0, 1, 80))


def test_as_it_was_where_nothing_is_asked_for():
    found = published(TABLE, PayoutConfig())
    pd.testing.assert_frame_equal(found[VALUES.names], TABLE)
    assert found["payout"].tolist() == [0.75, 0.25, 0.0] * 2
    assert set(found["clipped"]) == {0.5}


@pytest.mark.parametrize("rule", ["proportional", "floor", "tokens"])
def test_small_sources_are_one_row_and_the_others_as_before(rule):
    alone = published(TABLE, PayoutConfig(rule=rule, floor=0.3))
    found = published(TABLE, PayoutConfig(rule=rule, floor=0.3, minimum_documents=3))
    assert found["source"].tolist() == ["a", SMALL_SOURCES] * 2
    pd.testing.assert_frame_equal(
        found[found["source"] == "a"].reset_index(drop=True), alone[alone["source"] == "a"].reset_index(drop=True)
    )
    row, small = found.iloc[1], alone.iloc[1:3]
    for name in ("value", "share", "payout", "n_documents", "n_tokens"):
        assert row[name] == pytest.approx(small[name].sum())
    assert row[["standard_error", "low", "high", "error_documents", "error_queries"]].isna().all()
    assert found.dtypes["n_documents"] == TABLE.dtypes["n_documents"]


def test_everybody_small_and_nothing_positive():
    table = values(("a", -3.0, np.nan, 1, 90), ("b", -1.0, np.nan, 2, 30))
    found = published(table, PayoutConfig(minimum_documents=10))
    assert found["source"].tolist() == [SMALL_SOURCES] * 2
    assert found["value"].tolist() == [-4.0, -4.0]
    assert found[["share", "payout", "clipped"]].isna().all().all()


def test_a_place_is_as_far_told_as_intervals_are_apart():
    rows = [("a", 9.0), ("b", 5.0), ("c", 4.5), ("d", 1.0), ("e", 0.0)]
    table = values(*((name, value, 0.2, 5, 50) for name, value in rows))
    found = published(table, PayoutConfig())
    assert found["place_best"].tolist() == [1, 2, 2, 4, 4] * 2
    assert found["place_worst"].tolist() == [1, 3, 3, 5, 5] * 2
    table.loc[table["source"] == "c", ["low", "high"]] = np.nan
    found = published(table, PayoutConfig()).iloc[:5]
    assert found["place_best"].tolist()[:2] == [1, 2]
    assert found["place_worst"].tolist()[:2] == [2, 3]
    assert found.loc[found["source"] == "c", ["place_best", "place_worst"]].isna().all().all()
