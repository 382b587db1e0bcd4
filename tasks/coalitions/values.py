"""Values of the sources of a scoring pass as the rows of a table, on every level of a nested grouping."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dataworth.storage.schema import CAUSES
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.games.additive import interval, shares, standard_errors
from dataworth.tasks.coalitions.payout.levels import Level, levels
from dataworth.tasks.coalitions.player_values import Outcome
from dataworth.tasks.coalitions.uncertainty.quadrature import in_quadrature
from dataworth.tasks.corpus.groups import grouping_fields

__all__ = ["Players", "Values", "value_rows"]


@dataclass(frozen=True)
class Players:
    """Sources and queries of a scoring pass."""

    query_ids: list[str]
    names: list[str]
    grouping: str
    table: Any

    def column(self, name: str) -> np.ndarray:
        """(n_queries, n_sources) of a column of the sums."""
        found: np.ndarray = self.table[name].to_numpy().reshape(len(self.query_ids), len(self.names))
        return found


@dataclass(frozen=True)
class Values:
    """(n_queries, n_sources) values, by which game, what is to be known of them, and errors by their cause."""

    values: np.ndarray
    errors: np.ndarray
    low: np.ndarray
    high: np.ndarray
    game: str
    notes: dict[str, Any]
    overlap: list[dict[str, Any]] | None = None
    causes: dict[str, np.ndarray] = field(default_factory=dict)
    documents: list[dict[str, Any]] | None = None

    @classmethod
    def of_sums(cls, players: Players, sources: SourcesConfig) -> "Values":
        """The additive game."""
        sums, counts = players.column("sum"), players.column("n_documents")[0]
        errors = standard_errors(sums, players.column("sum_of_squares"), counts)
        low, high = interval(sums, errors, counts, sources.confidence)
        return cls(sums, errors, low, high, "additive", {"errors": "of documents"}, causes={"documents": errors})

    @classmethod
    def of_outcome(
        cls, outcome: Outcome, game: str, facts: dict[str, Any], overlap: list[dict[str, Any]] | None = None
    ) -> "Values":
        """A game that was played.

        Args:
            outcome: of it.
            game: its name.
            facts: what its check found.
            overlap: rows of OVERLAP of dataworth.storage.schema, where the game tells.
        """
        notes = facts | outcome.facts
        return cls(outcome.values, outcome.errors, outcome.low, outcome.high, game, notes, overlap, outcome.causes)


def value_rows(players: Players, found: Values, sources: SourcesConfig) -> list[dict[str, Any]]:
    """Rows of VALUES, the players' own level first."""
    return [
        row
        for level in levels(players.names, len(grouping_fields(players.grouping)))
        for row in _level_rows(level, players, found, sources)
    ]


def _at_level(level: Level, players: Players, found: Values, sources: SourcesConfig) -> Values:
    """Values of groups of players: errors of different sources are taken as independent."""
    values, counts = level.summed(found.values), level.summed(players.column("n_documents")[0])
    if found.game == "additive":
        sums, squares = level.summed(players.column("sum")), level.summed(players.column("sum_of_squares"))
        errors = standard_errors(sums, squares, counts)
        low, high = interval(values, errors, counts, sources.confidence)
        return replace(found, values=values, errors=errors, low=low, high=high, causes={"documents": errors})

    def together(parts: np.ndarray) -> np.ndarray:
        known = level.summed((~np.isnan(parts)).astype(np.int64)) > 0
        return np.where(known, np.sqrt(level.summed(np.nan_to_num(parts) ** 2)), np.nan)

    causes = {name: together(errors) for name, errors in found.causes.items()}
    low, high = values - together(found.values - found.low), values + together(found.high - found.values)
    errors = in_quadrature(list(causes.values()))
    return replace(found, values=values, errors=errors, low=low, high=high, causes=causes)


def _level_rows(level: Level, players: Players, found: Values, sources: SourcesConfig) -> list[dict[str, Any]]:
    counts, tokens = (level.summed(players.column(name)[0]) for name in ("n_documents", "n_tokens"))
    if level.names != players.names:
        found = _at_level(level, players, found, sources)
    values = found.values
    unknown = np.full(values.shape, np.nan)
    causes = {f"error_{name}": found.causes.get(name, unknown) for name in CAUSES}
    share = shares(values)
    return [
        {
            "query_id": query_id,
            "source": name,
            "value": float(values[row, column]),
            "standard_error": _or_none(found.errors[row, column]),
            "low": _or_none(found.low[row, column]),
            "high": _or_none(found.high[row, column]),
            "share": _or_none(share[row, column]),
            "n_documents": int(counts[column]),
            "n_tokens": int(tokens[column]),
            "game": found.game,
            "semivalue": sources.semivalue,
            "grouping": players.grouping,
            "level": level.number,
            **{name: _or_none(errors[row, column]) for name, errors in causes.items()},
        }
        for row, query_id in enumerate(players.query_ids)
        for column, name in enumerate(level.names)
    ]


def _or_none(value: np.float64) -> float | None:
    return None if math.isnan(value) else float(value)
