"""Values over several projections."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from tasks.coalitions.averages import averaged


def table(values, game="additive", documents=0.5):
    errors = np.array([documents, np.nan])
    return pd.DataFrame(
        {
            "query_id": "*", "source": ["a", "b"], "value": values, "standard_error": errors,
            "low": np.array(values) - 2 * errors, "high": np.array(values) + 3 * errors, "share": [0.5, 0.5],
            "n_documents": [3, 1], "n_tokens": [9, 9], "game": game, "semivalue": "shapley", "grouping": "source",
            "level": 1, "error_coalitions": np.nan, "error_documents": errors, "error_queries": np.nan,
            "error_projection": np.nan,
        }
    )  # fmt: skip


def test_mean_error_interval_and_share():
    found = averaged([table([1.0, 3.0]), table([2.0, 3.0]), table([3.0, 6.0])], 0.95).set_index("source")
    assert found["value"].tolist() == [2, 4]
    assert found["share"].tolist() == pytest.approx([1 / 3, 2 / 3])
    spread = np.array([1.0, np.sqrt(3.0)]) / np.sqrt(3)
    np.testing.assert_allclose(found["error_projection"], spread)
    np.testing.assert_allclose(found["standard_error"], [np.hypot(0.5, spread[0]), spread[1]])
    reach = student.ppf(0.975, 2) * spread
    np.testing.assert_allclose(found["low"], [2 - np.hypot(1.0, reach[0]), 4 - reach[1]])
    np.testing.assert_allclose(found["high"], [2 + np.hypot(1.5, reach[0]), 4 + reach[1]])


def test_values_of_several_games_are_not_averaged():
    with pytest.raises(ValueError, match="additive and newton"):
        averaged([table([1.0, 2.0]), table([1.0, 2.0], "newton")], 0.95)


def test_intervals_contain_the_mean_over_all_projections():
    generator = np.random.default_rng(0)
    contained = []
    for _ in range(500):
        tables = [table((5.0 + generator.normal(size=2)).tolist(), documents=1e-9) for _ in range(4)]
        found = averaged(tables, 0.95)
        contained.append((found["low"] <= 5) & (found["high"] >= 5))
    assert 0.92 <= np.mean(contained) <= 0.98
