"""Values over several projections, or checkpoints: their mean, and how far a value moves from one to another."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import t as student

from dataworth.storage.schema import CAUSES
from dataworth.tasks.coalitions.valuation import Valuation, shares

__all__ = ["Repeated", "averaged", "averaged_tables", "mean_document_values", "mean_overlap"]

# What was drawn or trained anew from one table of values to the next: a cause of errors (see CAUSES in the schema).
Repeated = Literal["projection", "checkpoint"]


def averaged(valuations: Sequence[Valuation], confidence: float, repeated: Repeated) -> Valuation:
    """The mean over projections drawn with different seeds, or over checkpoints.

    The error of the projection, or checkpoint, is the standard error of that mean. Errors of other causes come from the
    same documents, queries and orders in all of them, so they do not shrink: they are the root mean squares.

    Args:
        valuations: at least two, of the same queries and players by the same game.
        confidence: of the intervals.
        repeated: what differs between them.
    """
    first, n = valuations[0], len(valuations)
    values = np.stack([each.values for each in valuations])
    mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(n)
    whole = replace(
        first,
        values=mean,
        causes={cause: _root_mean_square([each.causes[cause] for each in valuations]) for cause in first.causes},
        low=mean - _root_mean_square([each.values - each.low for each in valuations]),
        high=mean + _root_mean_square([each.high - each.values for each in valuations]),
    )
    return whole.with_cause(repeated, error, student.ppf(0.5 + confidence / 2, n - 1) * error)


def averaged_tables(tables: Sequence[pd.DataFrame], confidence: float, repeated: Repeated) -> pd.DataFrame:
    """`averaged` of tables VALUES (see the schema).

    Args:
        tables: at least two, of the same rows.
        confidence, repeated: as there.

    Raises:
        ValueError: other rows, or values by another game.
    """
    first, same = tables[0], ["query_id", "source", "grouping", "level", "game", "semivalue"]
    for other in tables[1:]:
        if not first[same].equals(other[same]):
            games = sorted({game for table in tables for game in table["game"]})
            raise ValueError(f"the {repeated}s are not valued by one game, but by {' and '.join(games)}")
    known = [cause for cause in CAUSES if any(table[f"error_{cause}"].notna().any() for table in tables)]
    mean = averaged([_in_a_row(table, known) for table in tables], confidence, repeated)
    table = first.assign(
        value=mean.values[0],
        standard_error=mean.errors[0],
        low=mean.low[0],
        high=mean.high[0],
        **{f"error_{cause}": errors[0] for cause, errors in mean.causes.items()},
    )
    table["total"] = np.mean([each["total"].to_numpy(np.float64, na_value=np.nan) for each in tables], axis=0)
    by_query = table.groupby(["query_id", "level"], sort=False)["value"]
    table["share"] = by_query.transform(lambda column: shares(column.to_numpy()[None])[0])
    return table


def _in_a_row(table: pd.DataFrame, causes: Sequence[str]) -> Valuation:
    """Rows of a table side by side: what is averaged does not ask whose values they are."""

    def column(name: str) -> np.ndarray:
        return table[name].to_numpy(np.float64, na_value=np.nan)[None]

    by_cause = {cause: column(f"error_{cause}") for cause in causes}
    return Valuation(column("value"), by_cause, column("low"), column("high"), str(table["game"].iloc[0]))


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


def _root_mean_square(parts: Sequence[np.ndarray]) -> np.ndarray:
    root: np.ndarray = np.sqrt((np.stack(parts) ** 2).mean(axis=0))
    return root
