"""Valuations as rows of a table, on every level of a nested grouping."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from dataworth.storage.schema import CAUSES
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.games.additive import NAME as ADDITIVE
from dataworth.tasks.coalitions.games.additive import additive_valuation
from dataworth.tasks.coalitions.payout.levels import Level, levels
from dataworth.tasks.coalitions.players import Players
from dataworth.tasks.coalitions.valuation import Valuation, shares
from dataworth.tasks.corpus.groups import grouping_fields

__all__ = ["value_rows"]


def value_rows(players: Players, valuation: Valuation, sources: SourcesConfig) -> list[dict[str, Any]]:
    """Rows of VALUES, the players' own level first."""
    return [
        row
        for level in levels(players.names, len(grouping_fields(players.grouping)))
        for row in _level_rows(level, players, valuation, sources)
    ]


def _at_level(level: Level, players: Players, valuation: Valuation, confidence: float) -> Valuation:
    """Values of groups of players: errors of different sources are taken as independent."""
    if valuation.game == ADDITIVE:
        sums, squares = level.summed(players.column("sum")), level.summed(players.column("sum_of_squares"))
        added = additive_valuation(sums, squares, level.summed(players.column("n_documents")[0]), confidence)
        return replace(added, kind=valuation.kind, total=valuation.total)

    def together(parts: np.ndarray) -> np.ndarray:
        known = level.summed((~np.isnan(parts)).astype(np.int64)) > 0
        return np.where(known, np.sqrt(level.summed(np.nan_to_num(parts) ** 2)), np.nan)

    values = level.summed(valuation.values)
    low, high = (
        values - together(valuation.values - valuation.low),
        values + together(valuation.high - valuation.values),
    )
    causes = {name: together(errors) for name, errors in valuation.causes.items()}
    return replace(valuation, values=values, low=low, high=high, causes=causes)


def _level_rows(level: Level, players: Players, valuation: Valuation, sources: SourcesConfig) -> list[dict[str, Any]]:
    counts, tokens = (level.summed(players.column(name)[0]) for name in ("n_documents", "n_tokens"))
    if level.names != players.names:
        valuation = _at_level(level, players, valuation, sources.confidence)
    values, errors = valuation.values, valuation.errors
    unknown = np.full(values.shape, np.nan)
    causes = {f"error_{name}": valuation.causes.get(name, unknown) for name in CAUSES}
    share = shares(values)
    return [
        {
            "query_id": query_id,
            "source": name,
            "value": float(values[row, column]),
            "standard_error": _or_none(errors[row, column]),
            "low": _or_none(valuation.low[row, column]),
            "high": _or_none(valuation.high[row, column]),
            "share": _or_none(share[row, column]),
            "n_documents": int(counts[column]),
            "n_tokens": int(tokens[column]),
            "game": valuation.game,
            "semivalue": sources.semivalue,
            "grouping": players.grouping,
            "level": level.number,
            "kind": valuation.kind,
            "total": None if valuation.total is None else float(valuation.total[row]),
            **{name: _or_none(parts[row, column]) for name, parts in causes.items()},
        }
        for row, query_id in enumerate(players.query_ids)
        for column, name in enumerate(level.names)
    ]


def _or_none(value: np.float64) -> float | None:
    return None if math.isnan(value) else float(value)
