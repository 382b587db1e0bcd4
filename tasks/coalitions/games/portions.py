"""Players that hold portions of sources: some sources absent, or one split in parts.

portions[p, s] is the part of source s that player p holds. A coalition of such players is a fuzzy coalition of
sources (see `games.source_game.Game`): nothing of what a source brought is forgotten, and a source nobody holds takes
part in no coalition, so that its gradient is always among the removed ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from dataworth.tasks.coalitions.estimation.designs import Coalitions
from dataworth.tasks.coalitions.games.source_game import Game

__all__ = ["PortionedGame", "all_but", "divided", "known_utilities"]

# Degrees are rounded to this many decimals, so that a third and two thirds are a whole.
DECIMALS = 12


def all_but(n_sources: int, absent: Sequence[int]) -> Float[np.ndarray, "p s"]:
    """Every source but the absent ones is a player, in their order."""
    return np.delete(np.eye(n_sources), list(absent), axis=0)


def divided(n_sources: int, source: int, parts: int) -> Float[np.ndarray, "p s"]:
    """A source is `parts` players of equal portions: the first in its place, the others at the end."""
    portions = np.eye(n_sources)
    portions[source] /= parts
    return np.concatenate([portions, np.repeat(portions[[source]], parts - 1, axis=0)])


@dataclass(frozen=True)
class PortionedGame:
    """A game of sources, played by those who hold portions of them.

    Args:
        game: of the sources.
        portions: (n_players, n_sources), no column adding up to more than 1.
    """

    game: Game
    portions: np.ndarray

    @property
    def n_players(self) -> int:
        return len(self.portions)

    def utilities(self, masks: Coalitions) -> Float[np.ndarray, "m q"]:
        """The utility of what the members hold together; asked for once where several coalitions hold the same."""
        degrees, rows = np.unique(_held(masks, self.portions), axis=0, return_inverse=True)
        utilities: np.ndarray = self.game.utilities(degrees)[rows.reshape(-1)]
        return utilities


def known_utilities(
    masks: Bool[np.ndarray, "m s"], utilities: Float[np.ndarray, "m q"], portions: Float[np.ndarray, "p s"]
) -> tuple[Bool[np.ndarray, "k p"], Float[np.ndarray, "k q"]]:
    """Of coalitions of sources and their utilities, those that a coalition of the players holds, as that coalition.

    Where several do, the one of all players whose sources are all in.
    """
    holds = (portions > 0).astype(np.float64)
    members = masks.astype(np.float64) @ holds.T == holds.sum(axis=1)
    same = (_held(members, portions) == masks).all(axis=1)
    return members[same], utilities[same]


def _held(masks: np.ndarray, portions: np.ndarray) -> np.ndarray:
    """(m, s) degree to which coalitions of players hold each source."""
    degrees: np.ndarray = (masks.astype(np.float64) @ portions).round(DECIMALS)
    return degrees
