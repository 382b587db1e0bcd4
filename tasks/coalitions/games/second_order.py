"""Coalitions in the second-order expansion around the trained parameters: gains, and what is shared."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dataworth.tasks.coalitions.estimation.designs import Coalitions
from dataworth.tasks.coalitions.games.expansion import QueryExpansion

__all__ = ["InteractionGame"]


@dataclass(frozen=True)
class InteractionGame:
    """The second-order expansion around theta*: v(C) = sum of a_i - 1/2 sum of b_ij over i, j in C.

    a_i = q . H^-1 G_i and b_ij = G_i . H^-1 M H^-1 G_j, M the query's Gauss-Newton matrix = sum of f f^T.

    Args:
        gains: (n_queries, n_sources) a.
        along: (n_queries, n_labels, n_sources) f . H^-1 G_i, so that b = along^T along.
    """

    gains: np.ndarray
    along: np.ndarray

    @classmethod
    def of(cls, solved: Float[np.ndarray, "s d"], expansion: QueryExpansion) -> "InteractionGame":
        """From H^-1 G_i of each source.

        Raises:
            ValueError: a linear expansion has no interactions.
        """
        if expansion.factors is None:
            raise ValueError("the interaction game needs the queries' curvature")
        return cls(expansion.gradients @ solved.T, expansion.factors @ solved.T)

    @property
    def n_players(self) -> int:
        return self.gains.shape[1]

    def utilities(self, masks: Coalitions) -> Float[np.ndarray, "m q"]:
        """v of each coalition."""
        members = masks.astype(np.float64)
        together = self.along @ members.T
        return members @ self.gains.T - 0.5 * (together**2).sum(axis=1).T

    def shapley(self) -> Float[np.ndarray, "q s"]:
        """phi_i = a_i - b_ii / 2 - (sum over j != i of b_ij) / 2, which is a_i - (sum over all j of b_ij) / 2."""
        everybody = self.along.sum(axis=2, keepdims=True)
        return self.gains - 0.5 * (self.along * everybody).sum(axis=1)

    def interactions(self) -> Float[np.ndarray, "s s"]:
        """b summed over the queries: how far two sources stand in for each other."""
        flat = self.along.reshape(-1, self.along.shape[2])
        return flat.T @ flat
