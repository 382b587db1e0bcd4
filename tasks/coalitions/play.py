"""Playing a game over sources: is it to be trusted for this model, what is everybody worth, and how sure is that."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm
from scipy.stats import t as student

from tasks.coalitions.check import Check
from tasks.coalitions.config import SourcesConfig
from tasks.coalitions.designs import leave_one_out
from tasks.coalitions.estimators import Estimate
from tasks.coalitions.games import EvaluatedGame, ExpandedGame, Game, InteractionGame, QueryExpansion
from tasks.coalitions.jackknife import SourceGroups
from tasks.coalitions.newton import LayerSums, NewtonSteps
from tasks.coalitions.path import path_values
from tasks.coalitions.portions import PortionedGame, known_worth
from tasks.coalitions.sampling import Sampled, sampled, widest_interval
from tasks.coalitions.semivalues import size_weights

__all__ = ["Outcome", "Play", "Sums", "WorthKeeper"]

# Up to 2^8 coalitions a forward pass of the queries each is affordable.
MOST_EVALUATED = 8
MOST_CHECKED = 6


@runtime_checkable
class Sums(Protocol):
    """What a game needs of a model's sums (see tasks.coalitions.worth)."""

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


@runtime_checkable
class WorthKeeper(Protocol):
    """Where the worth of coalitions is kept (see storage.coalitions)."""

    def known(self, n_players: int, n_queries: int) -> tuple[np.ndarray, np.ndarray]: ...

    def add(self, masks: np.ndarray, worth: np.ndarray) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """Values (n_queries + 1, n_sources), the last row of all queries together, nats.

    Args:
        values, errors, low, high: errors are NaN where nothing tells them.
        reason: how they were come by, a sentence.
        facts: what is printed beside them.
        causes: the errors' parts by what they are of; they add up in quadrature, NaN where there is none.
        sampled: the coalitions asked for; None where the values have a closed form.
    """

    values: np.ndarray
    errors: np.ndarray
    low: np.ndarray
    high: np.ndarray
    reason: str
    facts: dict[str, Any]
    causes: dict[str, np.ndarray] = field(default_factory=dict)
    sampled: Sampled | None = None


@dataclass(frozen=True)
class Play:
    """A game of some sources and queries.

    Args:
        sums: of the sources.
        expansion: of the queries, to second order.
        losses_at: from a step to the queries' measured losses.
        base_losses: measured losses of the base; None where none is known.
        portions: (n_players, n_sources) which part of each source a player holds (see tasks.coalitions.portions);
            None: each player is a source.
        spread: makes an expanded game one that a cluster plays (see tasks.coalitions.spread); None: played here.
    """

    sums: Sums
    expansion: QueryExpansion
    losses_at: Callable[[np.ndarray], np.ndarray]
    base_losses: np.ndarray | None
    portions: np.ndarray | None = None
    spread: Callable[[ExpandedGame], Game] | None = None

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
        steps = self._steps(np.concatenate([nobody, leave_one_out(self.n_sources)[1 : 1 + MOST_CHECKED]]))
        measured = np.array([self.losses_at(step).sum() for step in steps])
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
        few = sources.utility == "auto" and self.n_sources <= MOST_EVALUATED
        return sources.game == "newton" and (sources.utility == "evaluated" or few)

    def asks_expanded(self, sources: SourcesConfig) -> bool:
        """Coalitions are worth what the queries' expansion says."""
        return sources.game == "newton" and not self.evaluates(sources)

    def values(self, sources: SourcesConfig, kept: WorthKeeper) -> Outcome:
        """Everybody's value: in closed form where there is one, else from coalitions, exact or sampled."""
        closed = self.closed_form(sources)
        if closed is not None:
            whole = _with_total(closed[0])
            unknown = np.full(whole.shape, np.nan)
            return self._with_queries(Outcome(whole, unknown, unknown, unknown, closed[1], {}), sources.confidence)
        found = self._asked(sources, kept)
        exact, estimate = found.ended_by == "exact", found.estimate
        unknown = np.full(estimate.values.shape, np.nan)
        facts = {
            "estimator": found.reason,
            "ended by": found.ended_by,
            "widest interval": found.widest,
            "widest interval of a query": widest_interval(estimate),
            "coalitions": estimate.n_coalitions,
            "coalitions evaluated now": found.n_evaluated,
            "utility": self.utility(sources),
        }
        low, high = (unknown, unknown) if exact else (estimate.low, estimate.high)
        errors = unknown if exact else estimate.standard_errors
        outcome = Outcome(estimate.values, errors, low, high, found.reason, facts, sampled=found)
        return self._with_queries(outcome, sources.confidence)

    def estimate(self, sources: SourcesConfig, kept: WorthKeeper) -> Estimate:
        """The same values with the errors of sampled coalitions alone, 0 in closed form."""
        closed = self.closed_form(sources)
        if closed is None:
            return self._asked(sources, kept).estimate
        whole = _with_total(closed[0])
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
        game, n_queries = self.game(sources), len(self.expansion.losses)

        def worth(masks: Bool[np.ndarray, "m s"]) -> Float[np.ndarray, "m q"]:
            found = game.utilities(masks)
            if self.portions is None:
                kept.add(masks, found)
            return _with_total(found.T).T

        masks, known = kept.known(self.n_sources, n_queries)
        if self.portions is not None:
            masks, known = known_worth(masks, known, self.portions)
        return sampled(
            worth,
            self.n_players,
            size_weights(self.n_players, sources.semivalue, sources.alpha, sources.beta),
            sources.tolerance,
            sources.budget,
            sources.confidence,
            np.random.default_rng(sources.seed),
            known=(masks, _with_total(known.T).T) if len(masks) else None,
            decisive=-1,
        )

    def _with_queries(self, outcome: Outcome, confidence: float) -> Outcome:
        """The error of the last row also tells how it would move had other queries been asked."""
        facts = outcome.facts | {
            "damping": self.sums.damping,
            "damping from": self.sums.damping_origin,
            "sum of values": float(outcome.values[-1].sum()),
            "errors": "of sampled coalitions, and in the row of all queries of the queries asked",
        }
        n_queries = len(self.expansion.losses)
        errors, low, high = outcome.errors.copy(), outcome.low.copy(), outcome.high.copy()
        causes = {"coalitions": outcome.errors, "queries": np.full(errors.shape, np.nan)}
        if n_queries > 1:
            of_queries = np.sqrt(n_queries) * outcome.values[:-1].std(axis=0, ddof=1)
            causes["queries"][-1] = of_queries
            errors[-1] = np.hypot(np.nan_to_num(errors[-1]), of_queries)
            reach = student.ppf(0.5 + confidence / 2, n_queries - 1) * of_queries
            sampled_reach = np.nan_to_num((high[-1] - low[-1]) / 2)
            reach = np.hypot(reach, sampled_reach)
            low[-1], high[-1] = outcome.values[-1] - reach, outcome.values[-1] + reach
        missing = np.isnan(low) & ~np.isnan(errors)
        reach = norm.ppf(0.5 + confidence / 2) * errors
        low = np.where(missing, outcome.values - reach, low)
        high = np.where(missing, outcome.values + reach, high)
        return replace(outcome, errors=errors, low=low, high=high, facts=facts, causes=causes)


def _with_total(by_query: Float[np.ndarray, "q m"]) -> Float[np.ndarray, "r m"]:
    """A last row of all queries together."""
    return np.concatenate([by_query, by_query.sum(axis=0, keepdims=True)])
