"""Values over several projections: their mean, and how far a value moves from one to another."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student

from tasks.coalitions.additive import shares
from tasks.coalitions.quadrature import in_quadrature

__all__ = ["averaged"]


def averaged(tables: Sequence[pd.DataFrame], confidence: float) -> pd.DataFrame:
    """The mean of tables VALUES (storage.schema) over projections drawn with different seeds.

    The error of the projection is the standard error of that mean. Errors of other causes come from the same documents,
    queries and orders in all of them, so they do not shrink: they are the root mean squares.

    Args:
        tables: at least two, of the same rows.
        confidence: of the intervals.

    Raises:
        ValueError: other rows, or values by another game.
    """
    first, same = tables[0], ["query_id", "source", "grouping", "level", "game", "semivalue"]
    for other in tables[1:]:
        if not first[same].equals(other[same]):
            games = sorted({game for table in tables for game in table["game"]})
            raise ValueError(f"the projections are not valued by one game, but by {' and '.join(games)}")
    columns = {
        name: np.stack([table[name].to_numpy(np.float64, na_value=np.nan) for table in tables])
        for name in first.columns
        if name in ("value", "low", "high", "standard_error") or name.startswith("error_")
    }
    values, n = columns["value"], len(tables)
    mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(n)
    causes = {name: _root_mean_square(found) for name, found in columns.items() if name.startswith("error_")}
    causes["error_projection"] = error
    reach = student.ppf(0.5 + confidence / 2, n - 1) * error
    found = first.assign(
        value=mean,
        standard_error=in_quadrature(list(causes.values())),
        low=mean - in_quadrature([_root_mean_square(values - columns["low"]), reach]),
        high=mean + in_quadrature([_root_mean_square(columns["high"] - values), reach]),
        **causes,
    )
    by_query = found.groupby(["query_id", "level"], sort=False)["value"]
    found["share"] = by_query.transform(lambda column: shares(column.to_numpy()[None])[0])
    return found


def _root_mean_square(parts: np.ndarray) -> np.ndarray:
    root: np.ndarray = np.sqrt((parts**2).mean(axis=0))
    return root
