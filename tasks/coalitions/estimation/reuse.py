"""Maximum sample reuse: every coalition counts in every player's value, once a simpler game has been taken off.

The simpler game is fitted to other coalitions than it is taken off from, so the estimate has no bias whatever the fit:

    phi(v) = phi(f) + E[coefficient(C) / chance(C) (v(C) - f(C))]

Sources: Wang & Jia 2023 (arXiv 2205.15466), section 4; Witter, Liu & Musco 2025 (arXiv 2506.11849) for the game taken
off.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from dataworth.tasks.coalitions.estimation.designs import paired_chances
from dataworth.tasks.coalitions.estimation.estimators import Estimate, different, split_pairs
from dataworth.tasks.coalitions.estimation.intervals import student_interval
from dataworth.tasks.coalitions.estimation.semivalues import size_chances

__all__ = ["adjusted_reuse", "pair_factors", "sample_reuse"]

FOLDS = 5
# Rows of data for every parameter of the simpler game, below which it is left simpler still.
ROWS_PER_PARAMETER = 6
HIGHEST_DEGREE = 8


def _size_basis(n_players: int, degree: int) -> np.ndarray:
    """(n + 1, degree + 1) polynomials in the angle arcsin(sqrt(size / n)), which bends where a saturating game does."""
    angle = np.arcsin(np.sqrt(np.arange(n_players + 1) / n_players))
    return np.polynomial.legendre.legvander(4 * angle / np.pi - 1, degree)


@dataclass(frozen=True)
class _Simpler:
    """f(C) = by_size(|C|) + sum over i in C of by_member_i + sum over pairs in C of by_pair_ij, 0 for nobody and all.

    Args:
        by_size: (n + 1, q).
        by_member: (n, q), which add up to 0.
        by_pair: (n (n - 1) / 2, q), which add up to 0, or None; pairs as in `np.triu_indices(n, 1)`.
    """

    by_size: np.ndarray
    by_member: np.ndarray
    by_pair: np.ndarray | None

    def utilities(self, masks: np.ndarray) -> np.ndarray:
        """(…, q) of (…, n) coalitions."""
        utilities = self.by_size[masks.sum(axis=-1)] + masks @ self.by_member
        return utilities if self.by_pair is None else utilities + _pairs(masks) @ self.by_pair

    def values(self, weights: np.ndarray) -> np.ndarray:
        """(q, n) semivalues: a pair counts for a member as often as the other one was there before."""
        n, chances = len(weights), size_chances(weights)
        values = (chances @ np.diff(self.by_size, axis=0))[:, None] + self.by_member.T
        if self.by_pair is not None:
            before = float(chances @ np.arange(n)) / (n - 1)
            one, two = np.triu_indices(n, 1)
            for ends in (one, two):
                np.add.at(values.T, ends, before * self.by_pair)
        return values


def _pairs(masks: np.ndarray) -> np.ndarray:
    """(…, n (n - 1) / 2) which pairs are in a coalition."""
    one, two = np.triu_indices(masks.shape[-1], 1)
    both: np.ndarray = masks[..., one] & masks[..., two]
    return both


def _fit(masks: np.ndarray, residuals: np.ndarray, by_member: bool) -> _Simpler:
    """The simpler game by least squares, with as many parameters as the coalitions pay for.

    Args:
        masks: (m, n). residuals: (m, q). by_member: more than sizes, first members and then pairs.
    """
    n = masks.shape[1]
    affordable = len(masks) // ROWS_PER_PARAMETER
    sizes = masks.sum(axis=1)
    # Members and pairs less what their coalition's size tells, which is left to the polynomial.
    further = [masks - sizes[:, None] / n] if by_member and affordable >= n + 1 else []
    if further and affordable >= n + 1 + n * (n - 1) // 2:
        further.append(_pairs(masks) - (sizes * (sizes - 1) / (n * (n - 1)))[:, None])
    degree = min(HIGHEST_DEGREE, n - 2, affordable - 1 - sum(columns.shape[1] for columns in further))
    q = residuals.shape[1]
    by_size = np.zeros((n + 1, q))
    if degree < 0:
        return _Simpler(by_size, np.zeros((n, q)), None)
    basis = _size_basis(n, degree)
    columns = np.hstack([basis[sizes], *further])
    coefficients = np.linalg.lstsq(columns, residuals, rcond=None)[0]
    by_size[1:-1] = (basis @ coefficients[: degree + 1])[1:-1]
    slopes, pairs = coefficients[degree + 1 : degree + 1 + n], coefficients[degree + 1 + n :]
    return _Simpler(
        by_size,
        slopes - slopes.mean(axis=0) if further else np.zeros((n, q)),
        pairs - pairs.mean(axis=0) if len(pairs) else None,
    )


def _factors(masks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(m, s) coefficient of each coalition's utility over its chance under the design."""
    n = len(weights)
    sizes = masks.sum(axis=1)[:, None]
    chances, drawn = size_chances(weights), paired_chances(weights)[sizes - 1]
    return np.where(masks, chances[sizes - 1] * n / (sizes * drawn), -chances[sizes] * n / ((n - sizes) * drawn))


def pair_factors(drawn: Bool[np.ndarray, "p 2 s"], weights: Float[np.ndarray, " s"]) -> Float[np.ndarray, "p 2 s"]:
    """What a pair of coalitions, the mean of both, adds to every player's value for each unit of their utilities."""
    return _factors(drawn.reshape(-1, drawn.shape[2]), weights).reshape(drawn.shape) / 2


def _moments(factors: np.ndarray, residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum (q, s) and sum of squares (q, s) over pairs of the mean over a pair of factor times residual.

    Args:
        factors: (pairs, 2, s). residuals: (pairs, 2, q).
    """
    (a, b), (u, w) = factors.swapaxes(0, 1) / 2, residuals.swapaxes(0, 1)
    sums = u.T @ a + w.T @ b
    return sums, (u**2).T @ a**2 + (w**2).T @ b**2 + 2 * (u * w).T @ (a * b)


def _fold(
    drawn: np.ndarray, residuals: np.ndarray, held: np.ndarray, weights: np.ndarray, by_member: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Sum (q, s) of the samples of the held out pairs and the sum of their squares about their mean."""
    n, q = drawn.shape[2], residuals.shape[2]
    others = 2 * int((~held).sum())
    simpler = _fit(drawn[~held].reshape(others, n), residuals[~held].reshape(others, q), by_member)
    own = drawn[held]
    left = residuals[held] - simpler.utilities(own)
    factors = _factors(own.reshape(-1, n), weights).reshape(own.shape)
    sums, squares = _moments(factors, left)
    return sums + held.sum() * simpler.values(weights), np.maximum(squares - sums**2 / held.sum(), 0.0)


def _reuse(
    masks: np.ndarray, utilities: np.ndarray, weights: np.ndarray, confidence: float, by_member: bool
) -> Estimate:
    total, drawn, gains = split_pairs(masks, utilities)
    n, pairs = masks.shape[1], len(drawn)
    residuals = gains - drawn.mean(axis=2)[:, :, None] * total
    # Too few pairs for a fit are one fold, whose simpler game is the straight line from nobody to everybody.
    folds = FOLDS if pairs >= 2 * FOLDS else min(pairs, 1)
    parts = [_fold(drawn, residuals, np.arange(pairs) % folds == fold, weights, by_member) for fold in range(folds)]
    values = total[:, None] / n + sum((part[0] for part in parts), np.zeros((len(total), n))) / max(pairs, 1)
    squares = sum((part[1] for part in parts), np.zeros_like(values))
    degrees = pairs - folds
    errors = np.sqrt(squares / (degrees * pairs)) if degrees > 0 else np.full_like(values, np.nan if n > 1 else 0.0)
    low, high = student_interval(values, errors, degrees, confidence)
    return Estimate(values, errors, low, high, different(masks), "adjusted_reuse" if by_member else "sample_reuse")


def sample_reuse(
    masks: Bool[np.ndarray, "m s"],
    utilities: Float[np.ndarray, "m q"],
    weights: Float[np.ndarray, " s"],
    confidence: float = 0.95,
) -> Estimate:
    """Any semivalue by sample reuse, with a game of coalitions' sizes alone taken off.

    Args:
        masks: nobody, everybody, then `paired_by_chances(..., paired_chances(weights), ...)`.
        utilities: the utility of each, for every query.
        weights: of the semivalue (see `size_weights`).
        confidence: of the interval.

    Raises:
        ValueError: masks of another design.
    """
    return _reuse(masks, utilities, weights, confidence, by_member=False)


def adjusted_reuse(
    masks: Bool[np.ndarray, "m s"],
    utilities: Float[np.ndarray, "m q"],
    weights: Float[np.ndarray, " s"],
    confidence: float = 0.95,
) -> Estimate:
    """Sample reuse with a game of sizes, of members and of pairs taken off, each once there are coalitions to fit it.

    Args, Raises: as `sample_reuse`.
    """
    return _reuse(masks, utilities, weights, confidence, by_member=True)
