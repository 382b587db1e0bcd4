"""Prefect task that turns the sums of a scoring pass into values of sources."""

import math
from typing import Any

import numpy as np
from prefect import task

from storage.coalitions import CoalitionStore
from storage.locations import StoreFolders
from storage.ref import StoreRef, fingerprint
from storage.scores import ScoreStore
from tasks.coalitions.additive import interval, shares, standard_errors
from tasks.coalitions.config import SourcesConfig
from tasks.coalitions.groupings import SOURCE, grouping_fields
from tasks.coalitions.levels import Level, levels

__all__ = ["value_sources"]

ALGORITHM = 2


@task(name="value-sources", task_run_name="value the sources ({sources.game})")
def value_sources(store: str, scores: StoreRef, sources: SourcesConfig) -> StoreRef:
    """Value, interval and share of every source for every query, and for all queries together.

    The coarser levels of a nested grouping are further rows.
    """
    parts = {"values": ALGORITHM, "scores": scores.fingerprint, **sources.model_dump(exclude={"by", "payout"})}
    opened = ScoreStore.open(scores)
    table = opened.source_sums.to_pandas()
    grouping = opened.manifest["attributes"].get("grouping", SOURCE)
    query_ids = table["query_id"].drop_duplicates().to_list()
    names = table["source"].drop_duplicates().to_list()
    shape = (len(query_ids), len(names))
    sums = table["sum"].to_numpy().reshape(shape)
    squares = table["sum_of_squares"].to_numpy().reshape(shape)
    n_documents = table["n_documents"].to_numpy().reshape(shape)[0]
    n_tokens = table["n_tokens"].to_numpy().reshape(shape)[0]
    rows = [
        row
        for level in levels(names, len(grouping_fields(grouping)))
        for row in _rows(level, query_ids, sums, squares, n_documents, n_tokens, sources, grouping)
    ]
    return CoalitionStore.write(StoreFolders(store).values, fingerprint(parts), rows, parts)


def _rows(
    level: Level,
    query_ids: list[str],
    sums: np.ndarray,
    squares: np.ndarray,
    n_documents: np.ndarray,
    n_tokens: np.ndarray,
    sources: SourcesConfig,
    grouping: str,
) -> list[dict[str, Any]]:
    """Rows of VALUES of one level; sums and counts are those of the players."""
    sums, squares = level.summed(sums), level.summed(squares)
    n_documents, n_tokens = level.summed(n_documents), level.summed(n_tokens)
    errors = standard_errors(sums, squares, n_documents)
    low, high = interval(sums, errors, n_documents, sources.confidence)
    share = shares(sums)
    return [
        {
            "query_id": query_id,
            "source": name,
            "value": float(sums[row, column]),
            "standard_error": _or_none(errors[row, column]),
            "low": _or_none(low[row, column]),
            "high": _or_none(high[row, column]),
            "share": _or_none(share[row, column]),
            "n_documents": int(n_documents[column]),
            "n_tokens": int(n_tokens[column]),
            "game": sources.game,
            "semivalue": sources.semivalue,
            "grouping": grouping,
            "level": level.number,
        }
        for row, query_id in enumerate(query_ids)
        for column, name in enumerate(level.names)
    ]


def _or_none(value: np.float64) -> float | None:
    return None if math.isnan(value) else float(value)
