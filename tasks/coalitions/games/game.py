"""Games: what a coalition of sources is worth to each query, minus the query's loss in nats.

v(C) = -loss(theta* + Delta_C), measured by a forward pass or by its expansion around the trained parameters theta*:
loss(theta* + Delta) ~ loss + q . Delta + 1/2 sum over f of (f . Delta)^2, with q the query's gradient and f the rows
whose outer products add up to its Gauss-Newton matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from dataworth.tasks.coalitions.estimation.designs import Coalitions
from dataworth.tasks.coalitions.games.newton import NewtonSteps

__all__ = [
    "AdditiveGame",
    "EvaluatedGame",
    "ExpandedGame",
    "Game",
    "InteractionGame",
    "QueryExpansion",
    "RetrainedGame",
]

# Steps whose losses are computed at a time.
STEPS_AT_ONCE = 256


@runtime_checkable
class Game(Protocol):
    """A worth for every coalition of players and every query.

    A player may take part to a degree from 0 to 1, with that part of its gradients and curvatures: a fuzzy coalition.
    Source: Aubin 1974, "Coeur et valeur des jeux flous a paiements lateraux".
    """

    @property
    def n_players(self) -> int: ...

    def utilities(self, masks: Coalitions) -> Float[np.ndarray, "m q"]:
        """(m, q) worth of (m, s) coalitions."""


@dataclass(frozen=True)
class AdditiveGame:
    """A coalition is worth the sum of its members' scores.

    Args:
        sums: (n_queries, n_sources).
    """

    sums: np.ndarray

    @property
    def n_players(self) -> int:
        return self.sums.shape[1]

    def utilities(self, masks: Coalitions) -> Float[np.ndarray, "m q"]:
        """The members' sums added up."""
        return masks.astype(np.float64) @ self.sums.T


@dataclass(frozen=True)
class QueryExpansion:
    """Losses of some queries near theta*, to second order.

    Args:
        losses: (n_queries,) at theta*, nats.
        gradients: (n_queries, D) q.
        factors: (n_queries, n_labels, D) f; None for the linear expansion.
    """

    losses: np.ndarray
    gradients: np.ndarray
    factors: np.ndarray | None

    def after(self, steps: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m q"]:
        """Expanded losses after some steps, nats."""
        return self.losses_along(self.along(steps))

    def along(self, steps: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m r"]:
        """q . step of every query, then f . step of every query and label: adds up over parts of the columns."""
        rows = self.gradients
        if self.factors is not None:
            rows = np.concatenate([rows, self.factors.reshape(-1, rows.shape[1])])
        return steps @ rows.T

    def losses_along(self, along: Float[np.ndarray, "m r"]) -> Float[np.ndarray, "m q"]:
        """Expanded losses, nats, from what `along` tells of all columns."""
        n_queries = len(self.losses)
        losses: np.ndarray = self.losses + along[:, :n_queries]
        if self.factors is not None:
            curved = along[:, n_queries:].reshape(len(along), n_queries, -1)
            losses = losses + 0.5 * (curved**2).sum(axis=2)
        return losses

    def of_columns(self, columns: slice) -> "QueryExpansion":
        """A part of it: of some columns of the steps."""
        factors = None if self.factors is None else self.factors[..., columns]
        return QueryExpansion(self.losses, self.gradients[:, columns], factors)


@dataclass(frozen=True)
class ExpandedGame:
    """The newton game with expanded losses.

    Args:
        steps: Delta of coalitions.
        expansion: of the queries.
        n_players: sources.
    """

    steps: NewtonSteps
    expansion: QueryExpansion
    n_players: int

    def utilities(self, masks: Coalitions) -> Float[np.ndarray, "m q"]:
        """Minus the expanded losses."""
        parts = [
            -self.expansion.after(self.steps(masks[first : first + STEPS_AT_ONCE]))
            for first in range(0, len(masks), STEPS_AT_ONCE)
        ]
        return np.concatenate([np.empty((0, len(self.expansion.losses))), *parts])


@dataclass(frozen=True)
class EvaluatedGame:
    """The newton game with losses measured by a forward pass of the model.

    Args:
        steps: Delta of coalitions.
        losses_at: from steps (m, D) to the losses of the queries (m, n_queries), nats.
        n_queries: of them.
        n_players: sources.
    """

    steps: NewtonSteps
    losses_at: Callable[[np.ndarray], np.ndarray]
    n_queries: int
    n_players: int

    def utilities(self, masks: Coalitions) -> Float[np.ndarray, "m q"]:
        """Minus the measured losses."""
        parts = [
            -self.losses_at(self.steps(masks[first : first + STEPS_AT_ONCE]))
            for first in range(0, len(masks), STEPS_AT_ONCE)
        ]
        return np.concatenate([np.empty((0, self.n_queries)), *parts])


@dataclass(frozen=True)
class RetrainedGame:
    """The worth that training on a coalition's documents, and on no others, is measured to have.

    Args:
        losses_after: from coalitions (m, s) to the losses of the queries (m, n_queries), nats.
        n_queries: of them.
        n_players: sources.
    """

    losses_after: Callable[[np.ndarray], np.ndarray]
    n_queries: int
    n_players: int

    def utilities(self, masks: Coalitions) -> Float[np.ndarray, "m q"]:
        """Minus the measured losses."""
        return -self.losses_after(masks)


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
