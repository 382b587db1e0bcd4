"""Values of players and how sure they are: asked of a game by coalitions, with what the queries asked add to it."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm
from scipy.stats import t as student

from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.estimation.sampling import Sampled, sampled, widest_interval
from dataworth.tasks.coalitions.estimation.semivalues import size_weights
from dataworth.tasks.coalitions.games.game import Game
from dataworth.tasks.coalitions.games.portions import known_worth

__all__ = ["Outcome", "WorthKeeper", "asked", "outcome_of", "with_queries", "with_total", "worth_of_all"]


@runtime_checkable
class WorthKeeper(Protocol):
    """Where the worth of coalitions is kept (see dataworth.storage.coalitions)."""

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


def asked(
    game: Game,
    n_queries: int,
    sources: SourcesConfig,
    kept: WorthKeeper,
    portions: np.ndarray | None = None,
    at_once: int | None = None,
) -> Sampled:
    """Ask a game for coalitions until its values are known; what was asked before is not asked again.

    Args:
        game: of the sources, or of the players that hold portions of them.
        n_queries: of the game.
        sources: semivalue, budget, tolerance, confidence, seed.
        kept: what is known, and gets to know.
        portions: (n_players, n_sources) which part of each source a player holds; their worth is not kept.
        at_once: coalitions after which their worth is kept; None: all that are asked together.
    """

    def worth(masks: Bool[np.ndarray, "m s"]) -> Float[np.ndarray, "m q"]:
        step = at_once or max(1, len(masks))
        found = [np.empty((0, n_queries))]
        for first in range(0, len(masks), step):
            part = masks[first : first + step]
            found.append(game.utilities(part))
            if portions is None:
                kept.add(part, found[-1])
        return with_total(np.concatenate(found).T).T

    n_sources = game.n_players if portions is None else portions.shape[1]
    masks, known = kept.known(n_sources, n_queries)
    if portions is not None:
        masks, known = known_worth(masks, known, portions)
    return sampled(
        worth,
        game.n_players,
        size_weights(game.n_players, sources.semivalue, sources.alpha, sources.beta),
        sources.tolerance,
        sources.budget,
        sources.confidence,
        np.random.default_rng(sources.seed),
        known=(masks, with_total(known.T).T) if len(masks) else None,
        decisive=-1,
    )


def worth_of_all(game: Game, n_queries: int, kept: WorthKeeper) -> Float[np.ndarray, " q"]:
    """What everybody together is worth: known, or asked for and kept."""
    masks, worth = kept.known(game.n_players, n_queries)
    there = masks.all(axis=1)
    if there.any():
        return worth[there][0]
    everybody = np.ones((1, game.n_players), bool)
    found = game.utilities(everybody)
    kept.add(everybody, found)
    return found[0]


def outcome_of(found: Sampled, utility: str) -> Outcome:
    """What was asked for, with the errors of sampled coalitions.

    Args:
        found: by `asked`.
        utility: how a coalition's worth is found.
    """
    estimate = found.estimate
    unknown = np.full(estimate.values.shape, np.nan)
    facts = {
        "estimator": found.reason,
        "ended by": found.ended_by,
        "widest interval": found.widest,
        "widest interval of a query": widest_interval(estimate),
        "coalitions": estimate.n_coalitions,
        "coalitions evaluated now": found.n_evaluated,
        "utility": utility,
    }
    exact = found.ended_by == "exact"
    low, high = (unknown, unknown) if exact else (estimate.low, estimate.high)
    errors = unknown if exact else estimate.standard_errors
    return Outcome(estimate.values, errors, low, high, found.reason, facts, sampled=found)


def with_queries(outcome: Outcome, confidence: float) -> Outcome:
    """The error of the last row also tells how it would move had other queries been asked."""
    facts = outcome.facts | {
        "sum of values": float(outcome.values[-1].sum()),
        "errors": "of sampled coalitions, and in the row of all queries of the queries asked",
    }
    n_queries = len(outcome.values) - 1
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


def with_total(by_query: Float[np.ndarray, "q m"]) -> Float[np.ndarray, "r m"]:
    """A last row of all queries together."""
    return np.concatenate([by_query, by_query.sum(axis=0, keepdims=True)])
