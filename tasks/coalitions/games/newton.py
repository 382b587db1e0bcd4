"""The newton game: a coalition's utility is minus the loss at the parameters it would have reached.

Losses are measured by forward passes, or those of the queries' expansion to second or first order. Of the first order
values are dot products of what sources are worth in parameters, which are found once for all queries.
"""

from typing import Any, Self

import numpy as np
from jaxtyping import Float

from dataworth.tasks.coalitions.estimation.sampling import Sampled, widest_interval
from dataworth.tasks.coalitions.games.expansion import QueryExpansion
from dataworth.tasks.coalitions.games.groups import SourceGroups
from dataworth.tasks.coalitions.games.play import Play
from dataworth.tasks.coalitions.games.source_game import Game, Material
from dataworth.tasks.coalitions.games.spread import PARTS, SpreadGame, SpreadRows, game_client
from dataworth.tasks.coalitions.games.step_games import EvaluatedGame, ExpandedGame
from dataworth.tasks.coalitions.games.stored_vectors import stored_vectors
from dataworth.tasks.coalitions.games.sums_game import SumsGame
from dataworth.tasks.coalitions.games.vectors import VectorValues
from dataworth.tasks.coalitions.valuation import Valuation

__all__ = ["MAX_EVALUATED", "Newton"]

# Up to 2^8 coalitions a forward pass of the queries each is affordable.
MAX_EVALUATED = 8
# Forward passes after which their utilities are kept.
KEPT_AT_ONCE = 64


class Newton(SumsGame):
    """Values from coalitions, exact or sampled; linear ones also read off the sources' values in parameters."""

    client: Any = None
    vectors: VectorValues | None = None

    def on(self, play: Play) -> Self:
        """With the same cluster."""
        game = super().on(play)
        game.client = self.client
        return game

    @property
    def evaluates(self) -> bool:
        """Utilities are measured by forward passes."""
        few = self.sources.utility == "auto" and self.play.n_sources <= MAX_EVALUATED
        return self.sources.utility == "evaluated" or few

    @property
    def utility(self) -> str:  # type: ignore[override]  # a constant of other games
        """How that of a coalition is found."""
        if self.evaluates:
            return "evaluated"
        return "quadratic" if self.sources.utility == "auto" else self.sources.utility

    @property
    def title(self) -> str:
        """With its utility."""
        return f"{self.sources.game}, {self.utility}"

    @property
    def affords_all(self) -> bool:
        """Unless they are too many for forward passes."""
        return super().affords_all and (not self.evaluates or self.play.n_sources <= MAX_EVALUATED)

    @property
    def at_once(self) -> int | None:
        """Forward passes take long."""
        return KEPT_AT_ONCE if self.evaluates else None

    def game(self) -> Game:
        """As they are asked for."""
        if not self.evaluates:
            return self.expanded()
        play = self.play
        losses_at = play.losses_at if self.client is None else SpreadRows(play.losses_at, self.client)
        return play.portioned(EvaluatedGame(play.steps, losses_at, play.n_queries, play.n_sources))

    def expanded(self) -> Game:
        """By the queries' expansion."""
        expansion = self.play.expansion
        if self.sources.utility == "linear":
            expansion = QueryExpansion(expansion.losses, expansion.gradients, None)
        game = ExpandedGame(self.play.steps, expansion, self.play.n_sources)
        spread = self.client is not None and not self.evaluates
        return self.play.portioned(SpreadGame(game, self.client) if spread else game)

    def prepare(self, material: Material) -> None:
        """Linear values come from the store; others are found on a cluster where one is asked for."""
        if self.sources.utility == "linear":
            names, sums = material.players.names, self.play.sums
            self.vectors = stored_vectors(material.store, material.needed, names, sums, self.sources)
        self.client = self.resources.enter_context(game_client(material.cluster, PARTS))

    def valued(self) -> tuple[Valuation, Sampled | None]:
        """Read off the values in parameters, where they are there."""
        if self.vectors is None:
            return super().valued()
        estimate = self.vectors.estimate(self.play.expansion.gradients, self.sources.confidence)
        facts = {
            "estimator": f"{estimate.estimator}, in parameters",
            "widest interval": widest_interval(estimate.of_queries([-1])),
            "widest interval of a query": widest_interval(estimate),
            "coalitions": estimate.n_coalitions,
            "utility": "linear",
        }
        return Valuation.of_estimate(estimate, self.sources.game, facts, exact=self.vectors.exact), None

    def replicates(self, groups: SourceGroups, sampled: Sampled | None) -> Float[np.ndarray, "g r s"]:
        """Read off, too."""
        if self.vectors is None:
            return super().replicates(groups, sampled)
        return self.vectors.replicate_values(self.play.expansion.gradients)
