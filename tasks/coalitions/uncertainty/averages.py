"""Values over several projections, or checkpoints: their mean, and how far a value moves from one to another."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import t as student

from dataworth.tasks.coalitions.games.additive import shares
from dataworth.tasks.coalitions.uncertainty.quadrature import in_quadrature

__all__ = ["Repeated", "averaged", "mean_document_values", "mean_overlap"]

# What was drawn or trained anew from one table of values to the next: a cause of errors (see CAUSES in the schema).
Repeated = Literal["projection", "checkpoint"]


def averaged(tables: Sequence[pd.DataFrame], confidence: float, repeated: Repeated) -> pd.DataFrame:
    """The mean of tables VALUES (see the schema) over projections drawn with different seeds, or over checkpoints.

    The error of the projection, or checkpoint, is the standard error of that mean. Errors of other causes come from the
    same documents, queries and orders in all of them, so they do not shrink: they are the root mean squares.

    Args:
        tables: at least two, of the same rows.
        confidence: of the intervals.
        repeated: what differs between them.

    Raises:
        ValueError: other rows, or values by another game.
    """
    first, same = tables[0], ["query_id", "source", "grouping", "level", "game", "semivalue"]
    for other in tables[1:]:
        if not first[same].equals(other[same]):
            games = sorted({game for table in tables for game in table["game"]})
            raise ValueError(f"the {repeated}s are not valued by one game, but by {' and '.join(games)}")
    columns = {
        name: np.stack([table[name].to_numpy(np.float64, na_value=np.nan) for table in tables])
        for name in first.columns
        if name in ("value", "low", "high", "standard_error") or name.startswith("error_")
    }
    values, n = columns["value"], len(tables)
    mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(n)
    causes = {name: _root_mean_square(found) for name, found in columns.items() if name.startswith("error_")}
    causes[f"error_{repeated}"] = error
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


def mean_document_values(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean of tables DOCUMENT_VALUES (see the schema), largest first: they add up to the means of their sources.

    Args:
        tables: at least one, of the same documents in any order.
    """
    first = tables[0]
    by_document = [table.set_index("document_id")["value"].loc[first["document_id"]] for table in tables]
    mean = first.assign(value=np.mean([values.to_numpy(np.float64) for values in by_document], axis=0))
    return mean.sort_values("value", ascending=False, kind="stable", ignore_index=True)


def mean_overlap(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean of tables OVERLAP (see the schema), over those that know a pair's overlap; NaN where none does.

    Args:
        tables: at least one, of the same rows.
    """
    overlaps = np.stack([table["overlap"].to_numpy(np.float64, na_value=np.nan) for table in tables])
    n_known = (~np.isnan(overlaps)).sum(axis=0)
    total = np.nansum(overlaps, axis=0)
    return tables[0].assign(overlap=np.divide(total, n_known, out=np.full(total.shape, np.nan), where=n_known > 0))


def _root_mean_square(parts: np.ndarray) -> np.ndarray:
    root: np.ndarray = np.sqrt((parts**2).mean(axis=0))
    return root
