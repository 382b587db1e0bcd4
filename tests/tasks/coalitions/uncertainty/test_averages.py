"""Values over several projections or checkpoints."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from dataworth.tasks.coalitions.uncertainty.averages import averaged_tables, mean_document_values, mean_overlap


def table(values, game="additive", documents=0.5, total=None):
    errors = np.array([documents, np.nan])
    return pd.DataFrame(
        {
            "query_id": "*", "source": ["a", "b"], "value": values, "standard_error": errors,
            "low": np.array(values) - 2 * errors, "high": np.array(values) + 3 * errors, "share": [0.5, 0.5],
            "n_documents": [3, 1], "n_tokens": [9, 9], "game": game, "semivalue": "shapley", "grouping": "source",
            "level": 1, "error_coalitions": np.nan, "error_documents": errors, "error_queries": np.nan,
            "error_projection": np.nan, "error_checkpoint": np.nan,
            "kind": "marginal", "total": np.nan if total is None else total,
        }
    )  # fmt: skip


@pytest.mark.parametrize("repeated", ["projection", "checkpoint"])
def test_mean_error_interval_and_share(repeated):
    tables = [table([1.0, 3.0], total=4.0), table([2.0, 3.0], total=5.0), table([3.0, 6.0], total=9.0)]
    found = averaged_tables(tables, 0.95, repeated).set_index("source")
    assert found["value"].tolist() == [2, 4]
    assert found["total"].tolist() == [6, 6]
    assert found["share"].tolist() == pytest.approx([1 / 3, 2 / 3])
    spread = np.array([1.0, np.sqrt(3.0)]) / np.sqrt(3)
    np.testing.assert_allclose(found[f"error_{repeated}"], spread)
    other = {"projection": "checkpoint", "checkpoint": "projection"}[repeated]
    assert found[f"error_{other}"].isna().all()
    np.testing.assert_allclose(found["standard_error"], [np.hypot(0.5, spread[0]), spread[1]])
    reach = student.ppf(0.975, 2) * spread
    np.testing.assert_allclose(found["low"], [2 - np.hypot(1.0, reach[0]), 4 - reach[1]])
    np.testing.assert_allclose(found["high"], [2 + np.hypot(1.5, reach[0]), 4 + reach[1]])


def test_values_of_several_games_are_not_averaged():
    with pytest.raises(ValueError, match="the checkpoints are not valued by one game, but by additive and newton"):
        averaged_tables([table([1.0, 2.0]), table([1.0, 2.0], "newton")], 0.95, "checkpoint")


def test_checkpoints_of_several_projections_each():
    """The error of the projection does not shrink with the number of checkpoints."""
    by_checkpoint = [
        averaged_tables([table([1.0, 2.0]), table([3.0, 2.5])], 0.95, "projection"),
        averaged_tables([table([4.0, 2.0]), table([8.0, 3.5])], 0.95, "projection"),
    ]
    found = averaged_tables(by_checkpoint, 0.95, "checkpoint")
    np.testing.assert_allclose(found["value"], [4.0, 2.5])
    of_projection = np.sqrt([(1.0 + 4.0) / 2, (0.25**2 + 0.75**2) / 2])
    np.testing.assert_allclose(found["error_projection"], of_projection)
    np.testing.assert_allclose(found["error_checkpoint"], [2.0, 0.25])
    of_documents = np.array([0.5, 0.0])
    expected = np.sqrt(of_documents**2 + of_projection**2 + np.array([2.0, 0.25]) ** 2)
    np.testing.assert_allclose(found["standard_error"], expected)


def test_intervals_contain_the_mean_over_all_projections():
    generator = np.random.default_rng(0)
    contained = []
    for _ in range(500):
        tables = [table((5.0 + generator.normal(size=2)).tolist(), documents=1e-9) for _ in range(4)]
        found = averaged_tables(tables, 0.95, "projection")
        contained.append((found["low"] <= 5) & (found["high"] >= 5))
    assert 0.92 <= np.mean(contained) <= 0.98


def test_the_mean_of_overlaps_is_over_those_that_are_known():
    pairs = pd.DataFrame({"query_id": "*", "source": ["a", "a", "b"], "other": ["b", "c", "c"]})
    one, two = pairs.assign(overlap=[0.5, np.nan, np.nan]), pairs.assign(overlap=[-0.1, 0.25, np.nan])
    found = mean_overlap([one, two])
    np.testing.assert_allclose(found["overlap"], [0.2, 0.25, np.nan])
    assert found[["source", "other"]].equals(pairs[["source", "other"]])


def test_values_of_documents_add_up_to_the_mean_of_their_sources():
    documents = pd.DataFrame({"document_id": ["d0", "d1", "d2"], "source": ["a", "a", "b"]})
    one, two = documents.assign(value=[1.0, 2.0, 5.0]), documents.assign(value=[3.0, -4.0, 6.0])
    found = mean_document_values([one, two.iloc[::-1]])
    assert found["document_id"].tolist() == ["d2", "d0", "d1"]
    assert found["value"].tolist() == [5.5, 2.0, -1.0]
    assert found.groupby("source")["value"].sum().tolist() == [1.0, 5.5]
