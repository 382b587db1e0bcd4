"""What games over sums are played on: gradients and curvatures of every source, and the queries' losses near theta*."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from dataworth.tasks.coalitions.estimation.designs import leave_one_out
from dataworth.tasks.coalitions.games.expansion import QueryExpansion
from dataworth.tasks.coalitions.games.groups import SourceGroups
from dataworth.tasks.coalitions.games.newton_steps import LayerSums, NewtonSteps
from dataworth.tasks.coalitions.games.portions import PortionedGame
from dataworth.tasks.coalitions.games.second_order import InteractionGame
from dataworth.tasks.coalitions.games.source_game import Game
from dataworth.tasks.coalitions.games.trust import SumsCheck

__all__ = ["Play", "Sums"]

MAX_CHECKED = 6


@runtime_checkable
class Sums(Protocol):
    """What a game needs of a model's sums (see dataworth.tasks.coalitions.games.model_game)."""

    @property
    def layers(self) -> list[LayerSums]: ...

    @property
    def damping(self) -> float: ...

    @property
    def damping_origin(self) -> str: ...

    @property
    def largest(self) -> float | None: ...

    @property
    def groups(self) -> SourceGroups | None: ...


@dataclass(frozen=True)
class Play:
    """Sources, and what they did to some queries.

    Args:
        sums: of the sources.
        expansion: of the queries, to second order.
        losses_at: from steps (m, D) to the queries' measured losses (m, n_queries).
        base_losses: measured losses of the base; None where none is known.
        portions: (n_players, n_sources) which part of each source a player holds (see games/portions.py);
            None: each player is a source.
    """

    sums: Sums
    expansion: QueryExpansion
    losses_at: Callable[[np.ndarray], np.ndarray]
    base_losses: np.ndarray | None
    portions: np.ndarray | None = None

    @property
    def n_sources(self) -> int:
        return len(self.sums.layers[0].gradients)

    @property
    def n_queries(self) -> int:
        return len(self.expansion.losses)

    @property
    def n_players(self) -> int:
        return self.n_sources if self.portions is None else len(self.portions)

    @property
    def steps(self) -> NewtonSteps:
        """Delta of coalitions of sources."""
        return NewtonSteps(self.sums.layers, self.sums.damping, self.sums.largest)

    def portioned(self, game: Game) -> Game:
        """A game of the sources as those play it who hold portions of them."""
        return game if self.portions is None else PortionedGame(game, self.portions)

    def checked(self) -> SumsCheck:
        """Measure what steps predict for nobody and for everybody but one."""
        nobody = np.zeros((1, self.n_sources), bool)
        steps = self.steps(np.concatenate([nobody, leave_one_out(self.n_sources)[1 : 1 + MAX_CHECKED]]))
        measured = self.losses_at(steps).sum(axis=1)
        here = float(self.expansion.losses.sum())
        predicted, actual = self.expansion.after(steps[1:]).sum(axis=1) - here, measured[1:] - here
        size = float(np.sqrt((actual**2).mean()))
        missed = float(np.sqrt(((predicted - actual) ** 2).mean())) / size if size > 0 else 0.0
        base = None if self.base_losses is None else float(self.base_losses.sum())
        return SumsCheck(here, float(measured[0]), base, missed)

    def interactions(self) -> Float[np.ndarray, "s s"]:
        """b of the interaction game, all queries together."""
        return self.interaction().interactions()

    def interaction(self) -> InteractionGame:
        """The second-order expansion of the players."""
        solved = [
            np.linalg.solve(
                layer.curvatures.sum(axis=0) + self.sums.damping * np.eye(layer.gradients.shape[1]), layer.gradients.T
            ).T
            for layer in self.sums.layers
        ]
        by_source = np.concatenate(solved, axis=1)
        return InteractionGame.of(by_source if self.portions is None else self.portions @ by_source, self.expansion)
