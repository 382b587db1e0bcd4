"""Values of groups of players: their errors, by cause, from those of the players."""

import numpy as np
import pandas as pd

from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.players import Players
from dataworth.tasks.coalitions.valuation import Valuation
from dataworth.tasks.coalitions.values import value_rows
from dataworth.tasks.corpus.groups import SEPARATOR


def test_errors_of_groups_add_up_by_cause():
    names = [SEPARATOR.join(name) for name in ("a1", "a2", "b1")]
    table = pd.DataFrame({"sum": 0.0, "sum_of_squares": 0.0, "n_documents": [4, 4, 1], "n_tokens": 9}, index=range(3))
    causes = {
        "coalitions": np.zeros((1, 3)),
        "documents": np.array([[3.0, 4.0, np.nan]]),
        "queries": np.array([[np.nan, np.nan, 2.0]]),
    }
    values, errors = np.array([[1.0, 2.0, 3.0]]), np.array([[3.0, 4.0, 2.0]])
    found = Valuation(values, causes, values - 2 * errors, values + 3 * errors, "path")
    players = Players(query_ids=["*"], names=names, grouping="x>y", table=table)
    own = pd.DataFrame(value_rows(players, found, SourcesConfig()))
    assert own["error_documents"].tolist()[:2] == [3, 4]
    above = own[own["level"] == 1].set_index("source")
    assert above.loc["a", ["value", "standard_error", "low", "high"]].tolist() == [3, 5, -7, 18]
    assert above.loc["b", ["value", "standard_error", "low", "high"]].tolist() == [3, 2, -1, 9]
    assert above["error_documents"].isna().tolist() == [False, True]
    assert above["error_queries"].isna().tolist() == [True, False]
    assert (above["error_coalitions"] == 0).all()
