"""Playing a game over sources: is it to be trusted for this model, what is everybody worth, and how sure is that."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.estimation.designs import leave_one_out
from dataworth.tasks.coalitions.estimation.estimators import Estimate
from dataworth.tasks.coalitions.estimation.sampling import Sampled, widest_interval
from dataworth.tasks.coalitions.games.game import EvaluatedGame, ExpandedGame, Game, InteractionGame, QueryExpansion
from dataworth.tasks.coalitions.games.jackknife import SourceGroups
from dataworth.tasks.coalitions.games.newton import LayerSums, NewtonSteps
from dataworth.tasks.coalitions.games.path import path_values
from dataworth.tasks.coalitions.games.portions import PortionedGame
from dataworth.tasks.coalitions.games.trust import Check
from dataworth.tasks.coalitions.games.vectors import VectorValues
from dataworth.tasks.coalitions.player_values import Outcome, WorthKeeper, asked, outcome_of, with_queries, with_total

__all__ = ["Play", "Sums"]

# Up to 2^8 coalitions a forward pass of the queries each is affordable.
MAX_EVALUATED = 8
MAX_CHECKED = 6
# Forward passes after which their worth is kept.
KEPT_AT_ONCE = 64


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
    """A game of some sources and queries.

    Args:
        sums: of the sources.
        expansion: of the queries, to second order.
        losses_at: from steps (m, D) to the queries' measured losses (m, n_queries).
        base_losses: measured losses of the base; None where none is known.
        portions: (n_players, n_sources) which part of each source a player holds (see games/portions.py);
            None: each player is a source.
        vectors: values in parameters; where they are there, newton's linear values are read off them.
        spread: makes an expanded game one that a cluster plays (see games/spread.py); None: played here.
    """

    sums: Sums
    expansion: QueryExpansion
    losses_at: Callable[[np.ndarray], np.ndarray]
    base_losses: np.ndarray | None
    portions: np.ndarray | None = None
    spread: Callable[[ExpandedGame], Game] | None = None
    vectors: VectorValues | None = None

    @property
    def n_sources(self) -> int:
        return len(self.sums.layers[0].gradients)

    @property
    def n_players(self) -> int:
        return self.n_sources if self.portions is None else len(self.portions)

    @property
    def _steps(self) -> NewtonSteps:
        return NewtonSteps(self.sums.layers, self.sums.damping, self.sums.largest)

    def checked(self) -> Check:
        """Measure what the game predicts for nobody and for everybody but one."""
        nobody = np.zeros((1, self.n_sources), bool)
        steps = self._steps(np.concatenate([nobody, leave_one_out(self.n_sources)[1 : 1 + MAX_CHECKED]]))
        measured = self.losses_at(steps).sum(axis=1)
        here = float(self.expansion.losses.sum())
        predicted, found = self.expansion.after(steps[1:]).sum(axis=1) - here, measured[1:] - here
        size = float(np.sqrt((found**2).mean()))
        missed = float(np.sqrt(((predicted - found) ** 2).mean())) / size if size > 0 else 0.0
        base = None if self.base_losses is None else float(self.base_losses.sum())
        return Check(here, float(measured[0]), base, missed)

    def interactions(self) -> Float[np.ndarray, "s s"]:
        """b of the interaction game, all queries together."""
        return self._interaction().interactions()

    def _interaction(self) -> InteractionGame:
        solved = [
            np.linalg.solve(
                layer.curvatures.sum(axis=0) + self.sums.damping * np.eye(layer.gradients.shape[1]), layer.gradients.T
            ).T
            for layer in self.sums.layers
        ]
        by_source = np.concatenate(solved, axis=1)
        return InteractionGame.of(by_source if self.portions is None else self.portions @ by_source, self.expansion)

    def game(self, sources: SourcesConfig) -> Game:
        """The game whose coalitions are asked."""
        if not self.evaluates(sources):
            return self.expanded(sources)
        return self._portioned(EvaluatedGame(self._steps, self.losses_at, len(self.expansion.losses), self.n_sources))

    def expanded(self, sources: SourcesConfig) -> Game:
        """The same game without a forward pass."""
        if sources.game == "interaction":
            return self._interaction()
        expansion = self.expansion
        if sources.utility == "linear":
            expansion = QueryExpansion(expansion.losses, expansion.gradients, None)
        game = ExpandedGame(self._steps, expansion, self.n_sources)
        return self._portioned(game if self.spread is None else self.spread(game))

    def _portioned(self, game: Game) -> Game:
        return game if self.portions is None else PortionedGame(game, self.portions)

    def evaluates(self, sources: SourcesConfig) -> bool:
        """Worth is measured by forward passes."""
        few = sources.utility == "auto" and self.n_sources <= MAX_EVALUATED
        return sources.game == "newton" and (sources.utility == "evaluated" or few)

    def values(self, sources: SourcesConfig, kept: WorthKeeper) -> Outcome:
        """Everybody's value: in closed form where there is one, else from coalitions, exact or sampled."""
        closed = self.closed_form(sources)
        if closed is not None:
            whole = with_total(closed[0])
            unknown = np.full(whole.shape, np.nan)
            return self._with_queries(Outcome(whole, unknown, unknown, unknown, closed[1], {}), sources.confidence)
        if self.vectors is not None and self.linear(sources):
            return self._with_queries(self._read_off(self.vectors, sources), sources.confidence)
        found = outcome_of(self._asked(sources, kept), self.utility(sources))
        return self._with_queries(found, sources.confidence)

    def linear(self, sources: SourcesConfig) -> bool:
        """Values are dot products of what sources are worth in parameters."""
        return sources.game == "newton" and sources.utility == "linear" and self.portions is None

    def _read_off(self, vectors: VectorValues, sources: SourcesConfig) -> Outcome:
        estimate = vectors.estimate(self.expansion.gradients, sources.confidence)
        facts = {
            "estimator": f"{estimate.estimator}, in parameters",
            "widest interval": widest_interval(estimate.of_queries([-1])),
            "widest interval of a query": widest_interval(estimate),
            "coalitions": estimate.n_coalitions,
            "utility": "linear",
        }
        unknown = np.full(estimate.values.shape, np.nan)
        ends = (unknown, unknown, unknown)
        if not vectors.exact:
            ends = (estimate.standard_errors, estimate.low, estimate.high)
        reason = f"from the sources' values in parameters, of {estimate.n_coalitions:,} coalitions"
        return Outcome(estimate.values, *ends, reason, facts)

    def estimate(self, sources: SourcesConfig, kept: WorthKeeper) -> Estimate:
        """The same values with the errors of sampled coalitions alone, 0 in closed form."""
        closed = self.closed_form(sources)
        if closed is None:
            return self._asked(sources, kept).estimate
        whole = with_total(closed[0])
        return Estimate(whole, np.zeros_like(whole), whole, whole, 0, "closed form")

    def utility(self, sources: SourcesConfig) -> str:
        """How a coalition's worth is found in newton."""
        if self.evaluates(sources):
            return "evaluated"
        return "quadratic" if sources.utility == "auto" else sources.utility

    def closed_form(self, sources: SourcesConfig) -> tuple[Float[np.ndarray, "q s"], str] | None:
        """Values in closed form and how they were come by, where the game has one."""
        if sources.game == "path":
            values = path_values(self.sums.layers, self.sums.damping, self.expansion, portions=self.portions)
            return values, "in closed form along the path, 16 damped solves"
        if sources.game == "interaction" and sources.semivalue == "shapley":
            return self._interaction().shapley(), "in closed form"
        return None

    def _asked(self, sources: SourcesConfig, kept: WorthKeeper) -> Sampled:
        at_once = KEPT_AT_ONCE if self.evaluates(sources) else None
        return asked(self.game(sources), len(self.expansion.losses), sources, kept, self.portions, at_once)

    def _with_queries(self, outcome: Outcome, confidence: float) -> Outcome:
        facts = {"damping": self.sums.damping, "damping from": self.sums.damping_origin}
        return with_queries(replace(outcome, facts=outcome.facts | facts), confidence)
