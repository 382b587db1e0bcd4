"""Estimators: from the utilities of coalitions to the value of every player, with its standard error and an interval.

All share one signature, so that a pilot can try them side by side: (masks, utilities, weights, confidence) → Estimate.
Where coalitions repeat, each row counts as a draw of its own: draws are independent and with replacement.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb

import numpy as np
from jaxtyping import Bool, Float

from dataworth.tasks.coalitions.estimation.designs import paired_chances
from dataworth.tasks.coalitions.estimation.intervals import skewed_interval, student_interval
from dataworth.tasks.coalitions.estimation.semivalues import coefficients, size_chances

__all__ = [
    "Estimate",
    "different",
    "exact",
    "is_shapley",
    "needed_sizes",
    "permutation",
    "regression",
    "split_pairs",
    "with_total",
]


@dataclass(frozen=True)
class Estimate:
    """Values of all players for all queries.

    values, standard_errors, low, high: (q, s), in the unit of the utilities; an error and an end of an interval are NaN
        where there are too few coalitions to tell.
    n_coalitions: different coalitions the estimate rests on.
    estimator: its name.
    """

    values: np.ndarray
    standard_errors: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_coalitions: int
    estimator: str

    def of_queries(self, rows: Sequence[int]) -> "Estimate":
        """The same of some queries."""
        one, two = self.values[rows], self.standard_errors[rows]
        return replace(self, values=one, standard_errors=two, low=self.low[rows], high=self.high[rows])


def with_total(by_query: Float[np.ndarray, "q m"]) -> Float[np.ndarray, "r m"]:
    """A last row of all queries together."""
    return np.concatenate([by_query, by_query.sum(axis=0, keepdims=True)])


def is_shapley(weights: Float[np.ndarray, " s"]) -> bool:
    """Whether the weights are those of Shapley: every size has the same chance."""
    return np.allclose(size_chances(weights), 1 / len(weights), rtol=1e-9)


def needed_sizes(weights: Float[np.ndarray, " s"]) -> Bool[np.ndarray, " s+1"]:
    """Which sizes of coalition, from 0 to n, count in the semivalue at all."""
    counts = weights != 0
    return np.append(counts, False) | np.insert(counts, 0, False)


def different(masks: Bool[np.ndarray, "m s"]) -> int:
    """How many different coalitions there are among these."""
    return len(np.unique(np.packbits(masks, axis=1), axis=0))


def exact(
    masks: Bool[np.ndarray, "m s"],
    utilities: Float[np.ndarray, "m q"],
    weights: Float[np.ndarray, " s"],
    confidence: float = 0.95,
) -> Estimate:
    """Values from the utility of every coalition that counts in the semivalue: all 2^n, or fewer for leave-one-out.

    Args:
        masks: each coalition once, in any order.
        utilities: the utility of each, for every query.
        weights: of the semivalue (see `size_weights`).
        confidence: of no effect; the interval is the value.

    Raises:
        ValueError: a coalition is missing or comes twice.
    """
    n = masks.shape[1]
    counts = needed_sizes(weights)[masks.sum(axis=1)]
    expected = sum(comb(n, size) for size in np.flatnonzero(needed_sizes(weights)))
    if counts.sum() != expected or different(masks[counts]) != expected:
        raise ValueError(f"the values of {n} players need {expected} coalitions, each once; got {counts.sum()}")
    values = utilities.T @ coefficients(masks, weights)
    return Estimate(values, np.zeros_like(values), values, values, expected, "exact")


def _marginals(masks: np.ndarray, utilities: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """(pairs, q, s) each player's marginal contribution times its size's factor, averaged over a pair of orders."""
    n = masks.shape[1]
    steps = masks.reshape(-1, n + 1, n)
    joined = (steps[:, 1:] & ~steps[:, :-1]).argmax(axis=2)
    gains = np.diff(utilities.reshape(len(steps), n + 1, utilities.shape[1]), axis=1) * factors[:, None]
    by_player = np.take_along_axis(gains, joined.argsort(axis=1)[:, :, None], axis=1)
    return by_player.reshape(len(steps) // 2, 2, n, utilities.shape[1]).mean(axis=1).swapaxes(1, 2)


def permutation(
    masks: Bool[np.ndarray, "m s"],
    utilities: Float[np.ndarray, "m q"],
    weights: Float[np.ndarray, " s"],
    confidence: float = 0.95,
) -> Estimate:
    """Mean marginal contribution along random orders of the players, each with its reverse.

    phi_i = E[n binomial(n - 1, k) w(k) (v(C + i) - v(C))], C the k players before i; the factor is 1 for Shapley. One
    pair of orders is one independent sample.

    Args:
        masks: `prefixes(antithetic_permutations(...))`, 2 (n + 1) coalitions a pair.
        utilities: the utility of each, for every query.
        weights: of the semivalue (see `size_weights`).
        confidence: of the interval.

    Raises:
        ValueError: the masks are not whole pairs of orders.

    Source: Castro, Gomez & Tejada 2009; Mitchell et al. 2022 (arXiv 2104.12199) for the reversed orders.
    """
    n = masks.shape[1]
    pairs, rest = divmod(len(masks), 2 * (n + 1))
    if rest or not pairs:
        raise ValueError(f"expected pairs of orders of {n} players, {2 * (n + 1)} coalitions each; got {len(masks)}")
    samples = _marginals(masks, utilities, n * size_chances(weights))
    values = samples.mean(axis=0)
    errors = samples.std(axis=0, ddof=1) / np.sqrt(pairs) if pairs > 1 else np.full_like(values, np.nan)
    low, high = skewed_interval(samples, confidence)
    return Estimate(values, errors, low, high, different(masks), "permutation")


def split_pairs(
    masks: Bool[np.ndarray, "m s"], utilities: Float[np.ndarray, "m q"]
) -> tuple[Float[np.ndarray, " q"], Bool[np.ndarray, "p 2 s"], Float[np.ndarray, "p 2 q"]]:
    """Everybody's utility less nobody's, the drawn coalitions and theirs less nobody's.

    Raises:
        ValueError: the masks are not nobody, everybody, then coalitions each followed by its complement.
    """
    if len(masks) < 2 or len(masks) % 2 or masks[0].any() or not (masks[::2] ^ masks[1::2]).all():
        raise ValueError("expected nobody, everybody, then coalitions each followed by its complement")
    pairs = len(masks) // 2 - 1
    drawn, gains = masks[2:].reshape(pairs, 2, masks.shape[1]), utilities[2:] - utilities[0]
    return utilities[1] - utilities[0], drawn, gains.reshape(pairs, 2, utilities.shape[1])


def regression(
    masks: Bool[np.ndarray, "m s"],
    utilities: Float[np.ndarray, "m q"],
    weights: Float[np.ndarray, " s"],
    confidence: float = 0.95,
) -> Estimate:
    """Shapley values as those of the additive game nearest to this one.

    phi = argmin sum over C of kernel(C) (v(C) - v(none) - sum of phi_i in C)², with sum phi = v(all) - v(none) and
    kernel(C) proportional to 1 / (binomial(n, |C|) |C| (n - |C|)), here over the drawn coalitions, each weighted by its
    kernel over its chance. The error is the jackknife's over pairs, in closed form; NaN with fewer than n pairs.

    Args:
        masks: nobody, everybody, then `paired_by_chances(..., paired_chances(weights), ...)`.
        utilities: the utility of each, for every query.
        weights: of the semivalue, which must be Shapley's.
        confidence: of the interval.

    Raises:
        ValueError: another semivalue, or masks of another design.

    Source: Musco & Witter 2025 (arXiv 2410.01917), who draw sizes evenly: leverage scores. With the chances here
        errors were from 9 % lower to 3 % higher, and sample reuse can share the coalitions. Covert & Lee 2021
        (arXiv 2012.01536).
    """
    if not is_shapley(weights):
        raise ValueError("regression gives Shapley values; for another semivalue take permutation or sample_reuse")
    total, drawn, gains = split_pairs(masks, utilities)
    n, pairs = masks.shape[1], len(drawn)
    sizes = drawn[:, 0].sum(axis=1, keepdims=True)
    # A complement's row is minus its partner's, so a pair counts as one row with half the difference of its remembered.
    roots = 1 / np.sqrt(sizes * (n - sizes) * paired_chances(weights)[sizes - 1])
    rows = roots * (drawn[:, 0] - sizes / n)
    targets = roots * ((gains[:, 0] - gains[:, 1]) - (2 * sizes / n - 1) * total) / 2
    # Rows add up to 0, so one direction has no information by design: the constraint has taken it.
    influence = rows @ np.linalg.pinv(rows.T @ rows, rcond=1e-10, hermitian=True)
    slopes = targets.T @ influence
    errors = _jackknife(rows, influence, targets - rows @ slopes.T)
    values = total[:, None] / n + slopes
    low, high = student_interval(values, errors, pairs - (n - 1), confidence)
    return Estimate(values, errors, low, high, different(masks), "regression")


def _jackknife(rows: np.ndarray, influence: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """(q, s) root of (m - 1) / m times the sum over rows of the squared change had that row been left out."""
    m, n = rows.shape
    if n == 1:
        return np.zeros((residuals.shape[1], n))
    if m < n:
        return np.full((residuals.shape[1], n), np.nan)
    leverage = (rows * influence).sum(axis=1, keepdims=True)
    # A row that alone fixes a direction has no residual and tells nothing about the error in it.
    left = np.where(leverage < 1 - 1e-9, 1 - leverage, np.inf)
    changes = (residuals / left) ** 2
    unknown = (influence**2 * np.isinf(left)).sum(axis=0) > 1e-18
    return np.where(unknown, np.nan, np.sqrt((m - 1) / m * changes.T @ influence**2))
