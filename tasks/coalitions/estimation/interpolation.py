"""Values from measured coalitions and a surrogate that was made from some: what it misses is interpolated.

    v(C) = f(C) + r(C),   r a Gaussian process with covariance s² exp(-RATE |C xor D|)

Given the residuals of the coalitions that were measured, r is known everywhere with an error, and a semivalue is a sum
over coalitions, so that its error is known, too. With every coalition measured the values are exact. s² is what
residuals are when each is predicted from the others; a coalition that the surrogate was made from counts with what a
surrogate made without it misses.

Sources: Rasmussen & Williams 2006, "Gaussian Processes for Machine Learning", section 2.2 and equation 5.12 (leaving
one out); O'Hagan 1991, "Bayes-Hermite quadrature".
"""

import numpy as np
from jaxtyping import Bool, Float

from dataworth.tasks.coalitions.estimation.designs import all_coalitions, coalition_rows
from dataworth.tasks.coalitions.estimation.estimators import Estimate, with_total
from dataworth.tasks.coalitions.estimation.intervals import student_interval
from dataworth.tasks.coalitions.estimation.semivalues import coefficients

__all__ = ["interpolated"]

# Chosen on one corpus of the bench of truth, reported on another.
RATE, NUGGET = 0.3, 1e-3
# Measured coalitions that the surrogate does not know, from which on they alone tell its error.
ENOUGH = 6


def interpolated(
    masks: Bool[np.ndarray, "m n"],
    utilities: Float[np.ndarray, "m q"],
    everything: Float[np.ndarray, "c q"],
    left_out: Float[np.ndarray, "k q"],
    weights: Float[np.ndarray, " n"],
    confidence: float = 0.95,
    left_out_counts: tuple[float, float] = (1.0, 1.0),
) -> Estimate:
    """Any semivalue; the last row is of all queries together.

    Args:
        masks: different coalitions: nobody, everybody, the k that the surrogate was made from, then others.
        utilities: measured of each.
        everything: the surrogate's, in the order of `all_coalitions`.
        left_out: of the k: utilities by surrogates that were made without each.
        weights: of the semivalue (see `size_weights`).
        confidence: of the interval.
        left_out_counts: the part, of what is missed by leaving one of the k out, that is missed elsewhere, but of a
            player alone: of a query, and of all together.

    Raises:
        ValueError: the first two are not nobody and everybody.
    """
    n_made_from = 2 + len(left_out)
    if len(masks) < n_made_from or masks[0].any() or not masks[1].all():
        raise ValueError("expected nobody, everybody, the coalitions that the surrogate was made from, then others")
    everybody = all_coalitions(masks.shape[1])
    places = coalition_rows(masks)
    surrogate, measured = with_total(everything.T).T, with_total(utilities.T).T
    missed = measured - surrogate[places]
    covariance = np.exp(-RATE * _different_members(everybody, everybody))
    among = covariance[np.ix_(places, places)]
    inverse = np.linalg.inv(among + NUGGET * np.eye(len(places)))
    predicts = covariance[:, places] @ inverse
    to_values = coefficients(everybody, weights)
    known = surrogate + predicts @ missed
    known[places] = measured
    values = known.T @ to_values
    unknown = covariance - predicts @ covariance[places]
    unknown[places], unknown[:, places] = 0.0, 0.0  # measured
    spreads = np.array([_spreads(everybody, to_values, unknown, count) for count in left_out_counts])

    of_its_own = inverse @ missed / np.sqrt(np.diag(inverse))[:, None]
    without = measured[2:n_made_from] - with_total(left_out.T).T
    counts = np.append(np.full(without.shape[1] - 1, left_out_counts[0]), left_out_counts[1])
    of_made_from = counts * without * np.sqrt(np.diag(inverse)[2:n_made_from, None])
    others = of_its_own[n_made_from:]
    told = others if len(others) >= ENOUGH else np.concatenate([of_made_from, others])
    if len(told) == 0 and len(places) < len(everybody):
        errors = np.full_like(values, np.nan)
    else:
        scales = (told**2).mean(axis=0) if len(told) else np.zeros(len(values))
        of_rows = np.concatenate([np.repeat(spreads[:1], len(values) - 1, axis=0), spreads[1:]])
        errors = np.sqrt(scales[:, None] * np.maximum(of_rows, 0.0))
    low, high = student_interval(values, errors, len(told), confidence)
    return Estimate(values, errors, low, high, len(places), "merged models")


def _spreads(everybody: np.ndarray, to_values: np.ndarray, unknown: np.ndarray, count: float) -> np.ndarray:
    """(n,) squared errors of values; a player alone that was not measured is as hard as what was left out."""
    hard = np.where(everybody.sum(axis=1) == 1, 1 / count, 1.0)[:, None] * to_values
    found: np.ndarray = np.einsum("cn,cd,dn->n", hard, unknown, hard)
    return found


def _different_members(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """(a, b) members that are in one of two coalitions and not in the other."""
    first, second = one.astype(float), two.astype(float)
    return np.asarray(first.sum(axis=1)[:, None] + second.sum(axis=1) - 2 * first @ second.T)
