"""Utilities of coalitions by the parameters they would have reached: minus the loss at theta* + Delta_C, in nats."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dataworth.tasks.coalitions.estimation.designs import Coalitions
from dataworth.tasks.coalitions.games.expansion import QueryExpansion
from dataworth.tasks.coalitions.games.newton_steps import NewtonSteps

__all__ = ["EvaluatedGame", "ExpandedGame"]

# Steps whose losses are computed at a time.
STEPS_AT_ONCE = 256


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
