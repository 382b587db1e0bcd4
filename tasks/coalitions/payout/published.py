"""What is published of values: payouts beside them, and small sources as one."""

import numpy as np
import pandas as pd

from dataworth.storage.schema import CAUSES
from dataworth.tasks.coalitions.config import PayoutConfig
from dataworth.tasks.coalitions.payout.payouts import payouts, published_names

__all__ = ["published"]

ADDED = ["value", "share", "payout", "n_documents", "n_tokens"]
UNKNOWN = ["standard_error", "low", "high", *(f"error_{cause}" for cause in CAUSES)]


def published(values: pd.DataFrame, config: PayoutConfig) -> pd.DataFrame:
    """Rows of VALUES with the columns `payout`, `clipped`, `place_best` and `place_worst`.

    Sources of few documents are one row, a query's last.

    Each query and level of a grouping is divided by itself, before small sources are added up, so that merging them
    changes nobody else's payout. The interval of their sum is not known. A place is where a source stands by its value,
    the largest first: it is not told from those whose intervals overlap its own, so that a range is left open.

    Args:
        values: rows of VALUES, any groupings and levels; in each, one query after another with the same sources.
        config: the rule, and how few documents are too few.
    """
    tables = values.groupby(["grouping", "level"], sort=False)
    merged = [_merged(_paid(rows, config), config.minimum_documents) for _, rows in tables]
    return pd.concat([_placed(rows) for rows in merged], ignore_index=True)


def _placed(rows: pd.DataFrame) -> pd.DataFrame:
    """With the best and the worst place that the intervals leave open; null where a source has none."""
    low, high = (_by_query(rows, name).astype(np.float64) for name in ("low", "high"))
    best, worst = np.full(low.shape, np.nan), np.full(low.shape, np.nan)
    for row, (lows, highs) in enumerate(zip(low, high, strict=True)):
        known = ~(np.isnan(lows) | np.isnan(highs))
        ordered_lows, ordered_highs = np.sort(lows[known]), np.sort(highs[known])
        above = len(ordered_lows) - np.searchsorted(ordered_lows, highs, side="right")
        below = np.searchsorted(ordered_highs, lows, side="left")
        best[row] = np.where(known, 1 + above, np.nan)
        worst[row] = np.where(known, len(lows) - below, np.nan)
    return rows.assign(place_best=best.ravel(), place_worst=worst.ravel())


def _by_query(rows: pd.DataFrame, name: str) -> np.ndarray:
    """(n_queries, n_sources) of a column."""
    column: np.ndarray = rows[name].to_numpy().reshape(rows["query_id"].nunique(), -1)
    return column


def _paid(rows: pd.DataFrame, config: PayoutConfig) -> pd.DataFrame:
    n_tokens = _by_query(rows, "n_tokens")
    paid = payouts(_by_query(rows, "value"), n_tokens[0], config.rule, config.floor)
    return rows.assign(payout=paid.parts.ravel(), clipped=np.repeat(paid.clipped, n_tokens.shape[1]))


def _merged(rows: pd.DataFrame, minimum: int) -> pd.DataFrame:
    rows = rows.assign(source=published_names(rows["source"].to_list(), rows["n_documents"].to_numpy(), minimum))
    small = _by_query(rows, "n_documents")[0] < minimum
    if not small.any():
        return rows
    rows = rows.reset_index(drop=True)
    together = rows.iloc[np.flatnonzero(small)[0] :: len(small)].assign(
        **{name: _by_query(rows, name)[:, small].sum(axis=1) for name in ADDED},
        **dict.fromkeys(UNKNOWN, float("nan")),
    )
    others = rows[~np.tile(small, len(together))]
    together.index = pd.RangeIndex(len(small) - 1, len(rows), len(small))  # where each query ends
    return pd.concat([others, together]).sort_index(kind="stable")
