"""What if: the shares had a source been absent, and what a source would gain by splitting itself.

Splitting is the known trick against Shapley payouts: where worth saturates, p parts of a source meet the others in p
places of the order and get more together than the source alone. It gains nothing in the additive game, in any game
quadratic in the sums (`interaction`), and along a path (Aumann & Shapley 1974), whose values add up from documents.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from tasks.coalitions.additive import shares
from tasks.coalitions.designs import all_coalitions
from tasks.coalitions.semivalues import exact_semivalues, size_weights

__all__ = ["MOST_EXACT", "Game", "SplitGain", "SumsGame", "shapley", "shares_without", "split_gain"]

# Coalitions of more players are too many to ask for: 2^16 = 65,536.
MOST_EXACT = 16


@runtime_checkable
class Game(Protocol):
    """A game over sources that can do without one and split one."""

    @property
    def n_players(self) -> int:
        """Sources that play."""

    def utility(self, masks: Bool[np.ndarray, "m s"]) -> Float[np.ndarray, "m q"]:
        """What each coalition is worth to each query."""

    def without(self, source: int) -> "Game":
        """The game of the other sources, in their order."""

    def split(self, source: int, parts: int) -> "Game":
        """The game in which a source is `parts` equal sources: the first in its place, the others at the end."""


@dataclass(frozen=True)
class SumsGame:
    """A game whose coalitions are worth a function of their members' sums, as gradients or curvatures add up.

    Args:
        sums: (n_sources, k) of each source; a part of p of a source has 1/p of its sums.
        worth: (m, k) sums of coalitions → (m, q).
    """

    sums: np.ndarray
    worth: Callable[[np.ndarray], np.ndarray]

    @property
    def n_players(self) -> int:
        return len(self.sums)

    def utility(self, masks: Bool[np.ndarray, "m s"]) -> Float[np.ndarray, "m q"]:
        """The worth of the members' sums."""
        return self.worth(masks.astype(np.float64) @ self.sums)

    def without(self, source: int) -> "SumsGame":
        """The same worth over the other sources."""
        return replace(self, sums=np.delete(self.sums, source, axis=0))

    def split(self, source: int, parts: int) -> "SumsGame":
        """The source's sums in equal parts."""
        part = self.sums[source : source + 1] / parts
        return replace(
            self, sums=np.concatenate([self.sums[:source], part, self.sums[source + 1 :], *[part] * (parts - 1)])
        )


@dataclass(frozen=True)
class SplitGain:
    """What a source is worth to each query, whole and in parts.

    Args:
        whole: (q,) its value.
        in_parts: (q,) the sum of its parts' values.
    """

    whole: np.ndarray
    in_parts: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """(q,) how much more its parts get together."""
        return self.in_parts - self.whole

    @property
    def relative(self) -> np.ndarray:
        """(q,) the gain as a part of the value's size; NaN where that is 0."""
        size = np.abs(self.whole)
        return np.divide(self.gain, size, out=np.full_like(size, np.nan), where=size > 0)


def shapley(game: Game) -> Float[np.ndarray, "q s"]:
    """Shapley values by enumeration of all coalitions.

    Raises:
        ValueError: more than MOST_EXACT players.
    """
    if game.n_players > MOST_EXACT:
        raise ValueError(f"{game.n_players} players have too many coalitions to ask for; at most {MOST_EXACT}")
    masks = all_coalitions(game.n_players)
    return exact_semivalues(masks, game.utility(masks), size_weights(game.n_players, "shapley"))


def shares_without(game: Game, source: int, values: Callable[[Any], np.ndarray] = shapley) -> Float[np.ndarray, "q s"]:
    """Shares had a source been absent: 0 for itself, parts of the others' positive total for them.

    Args:
        game: of all sources.
        source: which is absent.
        values: game → (q, s) values; a closed form where the game has one.
    """
    found: np.ndarray = np.insert(shares(values(game.without(source))), source, 0.0, axis=1)
    return found


def split_gain(game: Game, source: int, parts: int, values: Callable[[Any], np.ndarray] = shapley) -> SplitGain:
    """What a source would gain by splitting itself in equal parts.

    Args:
        game: of all sources.
        source: which one.
        parts: at least 1.
        values: game → (q, s) values; a closed form where the game has one (`additive`, `interaction`, `path`).
    """
    whole, divided = values(game), values(game.split(source, parts))
    others = np.arange(game.n_players, game.n_players + parts - 1)
    return SplitGain(whole[:, source], divided[:, [source, *others]].sum(axis=1))
