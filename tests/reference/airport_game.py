"""The next game, as a person would add one: a file of its own, and an entry of the registry.

The airport game: a runway must be as long as its largest aeroplane needs, here a coalition is worth its best member.
Source: Littlechild & Owen 1973, "A simple expression for the Shapley value in a special case".
"""

from dataclasses import dataclass

import numpy as np

from dataworth.tasks.coalitions.games.source_game import SourceGame, asked, valuation_of
from dataworth.tasks.coalitions.registry import Entry
from dataworth.tasks.coalitions.valuation import with_queries

__all__ = ["ENTRY", "Airport", "littlechild_owen"]

ENTRY = Entry(f"{__name__}:Airport", "a coalition is worth its best member", "scores")


@dataclass(frozen=True)
class BestMember:
    """Utilities by the (n_queries, n_sources) sums of scores, none of them below 0."""

    sums: np.ndarray

    @property
    def n_players(self):
        return self.sums.shape[1]

    def utilities(self, masks):
        return np.where(masks[:, None], self.sums, 0.0).max(axis=2)


class Airport(SourceGame):
    """Values from coalitions."""

    def __init__(self, material, kept):
        super().__init__()
        self.sources, self.kept = material.sources, kept
        self.game = BestMember(np.abs(material.players.column("sum")[:-1]))

    @classmethod
    def made(cls, material, kept):
        return cls(material, kept)

    def valuation(self):
        found = asked(self.game, len(self.game.sums), self.sources, self.kept)
        return with_queries(valuation_of(found, self.sources.game, "best member"), self.sources.confidence)


def littlechild_owen(sums):
    """(n_sources,) Shapley values of one query in closed form: each step up is shared by those who need it."""
    order = np.argsort(sums)
    steps = np.diff(np.concatenate([[0.0], sums[order]])) / np.arange(len(sums), 0, -1)
    values = np.empty_like(sums)
    values[order] = np.cumsum(steps)
    return values
