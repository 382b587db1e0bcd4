"""Levels of a nested grouping: the players, and the groups above them.

A group is worth the sum of its players, so that values of a nested grouping add up level by level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from dataworth.tasks.corpus.groups import SEPARATOR

__all__ = ["Level", "levels"]


@dataclass(frozen=True)
class Level:
    """Groups of players.

    Args:
        number: 1 = coarsest; a grouping by one field has no other.
        names: of the groups.
        members: (n_players,) number of the group each player belongs to.
    """

    number: int
    names: list[str]
    members: np.ndarray

    def summed(self, values: Shaped[np.ndarray, "*q s"]) -> Shaped[np.ndarray, "*q g"]:
        """Values of players added up by group."""
        totals = np.zeros((*values.shape[:-1], len(self.names)), values.dtype)
        np.add.at(totals.T, self.members, values.T)
        return totals


def levels(names: Sequence[str], depth: int) -> list[Level]:
    """The players themselves, then every coarser level.

    Args:
        names: (n_players,) as `group_names` gives them, each once.
        depth: fields of the grouping.
    """
    finest_first = [Level(depth, list(names), np.arange(len(names)))]
    for number in range(depth - 1, 0, -1):
        above = [SEPARATOR.join(name.split(SEPARATOR)[:number]) for name in names]
        coarse, members = _numbered(above)
        finest_first.append(Level(number, coarse, members))
    return finest_first


def _numbered(names: Sequence[str]) -> tuple[list[str], Int[np.ndarray, " s"]]:
    unique, members = np.unique(np.asarray(names, dtype=object), return_inverse=True)
    return [str(name) for name in unique], members
