"""Sampling: values of a game to a tolerance within a budget, by the estimator that errs least on it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from dataworth.tasks.coalitions.estimation.designs import (
    all_coalitions,
    antithetic_permutations,
    leave_one_out,
    paired_by_chances,
    paired_chances,
    prefixes,
)
from dataworth.tasks.coalitions.estimation.estimators import (
    Estimate,
    exact,
    is_shapley,
    needed_sizes,
    permutation,
    regression,
)
from dataworth.tasks.coalitions.estimation.reuse import adjusted_reuse, sample_reuse
from dataworth.tasks.coalitions.estimation.utilities import Utilities, Utility

__all__ = ["ESTIMATORS", "EstimatorName", "Sampled", "enumerated", "sampled", "widest_interval"]

EstimatorName = Literal["auto", "permutation", "regression", "sample_reuse", "adjusted_reuse"]
MAX_ENUMERATED = 16
# Fewer pairs of orders do not tell their spread; ten coalitions a player are enough for adjusted_reuse to fit.
PILOT_PAIRS, PILOT_MOST = 4, 10
# A standard error this much larger over a pilot is as good.
TIE = 1.1
ESTIMATORS = {
    "permutation": permutation,
    "regression": regression,
    "sample_reuse": sample_reuse,
    "adjusted_reuse": adjusted_reuse,
}


@dataclass(frozen=True)
class Sampled:
    """Values of a game, and how they were come by.

    reason: which estimator, and why, in a sentence.
    ended_by: what came first.
    widest: of the result, see `widest_interval`; of the decisive query where there is one.
    masks, utilities: every coalition known at the end, to be handed on as `known`.
    n_evaluated: how many of them this call evaluated.
    design: coalitions the estimate is of, in the order and as often as its estimator takes them.
    """

    estimate: Estimate
    reason: str
    ended_by: Literal["exact", "tolerance", "budget"]
    widest: float
    masks: np.ndarray
    utilities: np.ndarray
    n_evaluated: int
    design: np.ndarray


def widest_interval(estimate: Estimate) -> float:
    """The farthest end of an interval from its value, as a part of the largest absolute value of its query.

    0.05 says that every value is known to ± 5 % of its query's largest; infinite where an interval is unknown.
    """
    reach = np.nan_to_num(np.maximum(estimate.high - estimate.values, estimate.values - estimate.low), nan=np.inf)
    scale = np.broadcast_to(np.abs(estimate.values).max(axis=1, keepdims=True, initial=0.0), reach.shape)
    parts = np.divide(reach, scale, out=np.where(reach > 0, np.inf, 0.0), where=scale > 0)
    return float(parts.max(initial=0.0))


class _Design:
    """Coalitions drawn so far under one design, with their utilities.

    unit: different coalitions that one more independent sample brings, at most.
    """

    def __init__(self, draw: Callable[[int], np.ndarray], unit: int, ends: np.ndarray, remembered: Utilities) -> None:
        self._draw, self._remembered, self.unit = draw, remembered, unit
        self.units = 0
        self.masks, self.utilities = ends, remembered(ends) if len(ends) else np.zeros((0, 0))

    def grow(self, units: int) -> None:
        masks = self._draw(units)
        utilities = self._remembered(masks)
        self.units += units
        self.masks = np.concatenate([self.masks, masks])
        self.utilities = np.concatenate([self.utilities, utilities]) if len(self.utilities) else utilities


@dataclass(frozen=True)
class _Search:
    """What one call of `sampled` works with."""

    remembered: Utilities
    orders: _Design
    pairs: _Design
    weights: np.ndarray
    confidence: float
    budget: int
    decisive: int | None

    def decided_by(self, estimate: Estimate) -> Estimate:
        """The rows whose errors choose the estimator and end the sampling."""
        return estimate if self.decisive is None else estimate.of_queries([self.decisive])

    def design(self, estimator: str) -> _Design:
        return self.orders if estimator == "permutation" else self.pairs

    def estimate(self, estimator: str) -> Estimate:
        design = self.design(estimator)
        return ESTIMATORS[estimator](design.masks, design.utilities, self.weights, self.confidence)

    def affordable(self, design: _Design) -> int:
        """Samples the rest of the budget pays for.

        Of coalitions drawn again only every fourth counts, so that a small game whose coalitions are nearly all known
        comes to an end.
        """
        drawn = len(self.orders.masks) + len(self.pairs.masks)
        return (self.budget - max(self.remembered.asked, drawn // 4)) // design.unit


def _search(
    remembered: Utilities,
    weights: np.ndarray,
    confidence: float,
    budget: int,
    generator: np.random.Generator,
    decisive: int | None,
) -> _Search:
    n = len(weights)
    ends = np.stack([np.zeros(n, bool), np.ones(n, bool)])
    chances = paired_chances(weights)
    orders = _Design(lambda k: prefixes(antithetic_permutations(n, k, generator)), 2 * (n - 1), ends[:0], remembered)
    pairs = _Design(lambda k: paired_by_chances(n, k, chances, generator), 2, ends, remembered)
    return _Search(remembered, orders, pairs, weights, confidence, budget, decisive)


def _relative_error(estimate: Estimate) -> float:
    """Root mean square of the standard errors, as parts of their query's largest absolute value."""
    scale = np.abs(estimate.values).max(axis=1, keepdims=True, initial=0.0)
    known = np.nan_to_num(estimate.standard_errors, nan=np.inf)
    errors = np.divide(known, scale, out=np.zeros_like(estimate.values), where=scale > 0)
    return float(np.sqrt((errors**2).mean())) if errors.size else 0.0


def _choice(search: _Search) -> tuple[str, str]:
    """The estimator with the smallest standard error over a pilot of equal cost, and the reason in a sentence."""
    n = len(search.weights)
    pairs = max(PILOT_PAIRS, min(search.budget // 3, PILOT_MOST * n) // search.orders.unit)
    cost = pairs * search.orders.unit
    if 3 * cost > search.budget:
        return "adjusted_reuse", f"adjusted_reuse, as a budget of {search.budget} coalitions leaves no room for a pilot"
    search.orders.grow(pairs)
    search.pairs.grow(cost // search.pairs.unit)
    names = [name for name in ESTIMATORS if name != "regression" or is_shapley(search.weights)]
    errors = {name: _relative_error(search.decided_by(search.estimate(name))) for name in names}
    best = min(names, key=errors.__getitem__)
    if errors["adjusted_reuse"] <= TIE * errors[best]:
        best = "adjusted_reuse"  # which gains most from more coalitions, as it fits more of the game
    others = ", ".join(f"{name} {errors[name]:.2g}" for name in names if name != best)
    return best, f"{best}, whose standard error was {errors[best]:.2g} over a pilot of {cost} coalitions ({others})"


def _sample(search: _Search, estimator: str, tolerance: float) -> tuple[Estimate, Literal["tolerance", "budget"]]:
    design = search.design(estimator)
    if design.units + search.affordable(design) < 2:
        raise ValueError(
            f"{estimator} of {len(search.weights)} players needs {2 + 2 * design.unit} coalitions at least, "
            f"the budget is {search.budget}"
        )
    if design.units < 2:
        design.grow(2)
    while True:
        estimate = search.estimate(estimator)
        if widest_interval(search.decided_by(estimate)) <= tolerance:
            return estimate, "tolerance"
        units = min(search.affordable(design), max(1, design.units // 4))
        if units < 1:
            return estimate, "budget"
        design.grow(units)


def enumerated(weights: np.ndarray, budget: int) -> np.ndarray | None:
    """All coalitions the semivalue needs, where the budget pays for them."""
    n = len(weights)
    if not needed_sizes(weights)[: n - 1].any() and n + 1 <= budget:
        return leave_one_out(n)
    return all_coalitions(n) if n <= MAX_ENUMERATED and 2**n <= budget else None


def sampled(
    utility: Utility,
    n_players: int,
    weights: Float[np.ndarray, " s"],
    tolerance: float,
    budget: int,
    confidence: float,
    generator: np.random.Generator,
    estimator: EstimatorName = "auto",
    known: tuple[np.ndarray, np.ndarray] | None = None,
    decisive: int | None = None,
) -> Sampled:
    """A game's values: exact where the budget allows, else sampled until all are known to a tolerance.

    The result depends on the game, the arguments and the generator's seed, not on what is `known`, which saves
    evaluations only. The pilot and the tolerance look at the errors of the draws they keep, so intervals that end by
    `tolerance` cover a little less than those of a design fixed beforehand.

    Args:
        utility: masks (m, s) to utilities (m, q); called with one batch at a time, and never twice for a coalition.
        n_players: s, at least 1.
        weights: of the semivalue (see `size_weights`).
        tolerance: of the widest interval (see `widest_interval`).
        budget: of different coalitions, known ones included.
        confidence: of the intervals.
        generator: draws the coalitions.
        estimator: `auto` lets a pilot decide. Enumeration comes before any.
        known: masks and utilities evaluated before.
        decisive: row of the query whose errors choose the estimator and whose intervals the tolerance is for; None:
            those of every query.

    Raises:
        ValueError: weights of another number of players; a budget too small for two samples; regression of another
            semivalue than Shapley's.
    """
    if n_players < 1 or len(weights) != n_players:
        raise ValueError(f"expected a weight for each of at least 1 player, got {len(weights)} for {n_players}")
    remembered = Utilities(utility, n_players, known)
    everything = enumerated(weights, budget)
    if everything is not None:
        estimate = exact(everything, remembered(everything), weights, confidence)
        reason = f"exact, as {len(everything)} coalitions are all there are to ask for"
        return Sampled(estimate, reason, "exact", 0.0, *remembered.everything(), remembered.evaluated, everything)
    if n_players == 1 or budget < 2:
        raise ValueError(f"a budget of {budget} coalitions does not pay for nobody and everybody")
    search = _search(remembered, weights, confidence, budget, generator, decisive)
    chosen, reason = _choice(search) if estimator == "auto" else (str(estimator), f"{estimator}, as asked")
    estimate, ended_by = _sample(search, chosen, tolerance)
    design = search.design(chosen).masks
    return Sampled(
        estimate,
        reason,
        ended_by,
        widest_interval(search.decided_by(estimate)),
        *remembered.everything(),
        remembered.evaluated,
        design,
    )
