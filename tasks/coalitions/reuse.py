"""Maximum sample reuse: every coalition counts in every player's value, once a simpler game has been taken off.

The simpler game is fitted to other coalitions than it is taken off from, so the estimate has no bias whatever the fit:

    phi(v) = phi(f) + E[coefficient(C) / chance(C) (v(C) - f(C))]

Sources: Wang & Jia 2023 (arXiv 2205.15466), section 4; Witter, Liu & Musco 2025 (arXiv 2506.11849) for the game taken
off.
"""

import numpy as np
from jaxtyping import Bool, Float

from tasks.coalitions.designs import paired_chances
from tasks.coalitions.estimators import Estimate, different, split_pairs
from tasks.coalitions.intervals import student_interval
from tasks.coalitions.semivalues import size_chances

__all__ = ["adjusted_reuse", "sample_reuse"]

FOLDS = 5
# Rows of data for every parameter of the simpler game, below which it is left simpler still.
ROWS_PER_PARAMETER = 6
HIGHEST_DEGREE = 8


def _size_basis(n_players: int, degree: int) -> np.ndarray:
    """(n + 1, degree + 1) polynomials in the angle arcsin(sqrt(size / n)), which bends where a saturating game does."""
    angle = np.arcsin(np.sqrt(np.arange(n_players + 1) / n_players))
    return np.polynomial.legendre.legvander(4 * angle / np.pi - 1, degree)


def _fit(masks: np.ndarray, residuals: np.ndarray, by_member: bool) -> tuple[np.ndarray, np.ndarray]:
    """The simpler game's worth by size (n + 1, q), 0 for nobody and everybody, and by member (n, q).

    f(C) = by_size(|C|) + sum over i in C of by_member_i - |C| mean(by_member), least squares.
    """
    n = masks.shape[1]
    affordable = len(masks) // ROWS_PER_PARAMETER
    by_member = by_member and affordable >= n + 1
    degree = min(HIGHEST_DEGREE, n - 2, affordable - 1 - n * by_member)
    by_size = np.zeros((n + 1, residuals.shape[1]))
    if degree < 0:
        return by_size, np.zeros((n, residuals.shape[1]))
    sizes = masks.sum(axis=1)
    basis = _size_basis(n, degree)
    members = masks - sizes[:, None] / n
    columns = np.hstack([basis[sizes], members]) if by_member else basis[sizes]
    found = np.linalg.lstsq(columns, residuals, rcond=None)[0]
    by_size[1:-1] = (basis @ found[: degree + 1])[1:-1]
    slopes = found[degree + 1 :] if by_member else np.zeros((n, residuals.shape[1]))
    return by_size, slopes - slopes.mean(axis=0)


def _factors(masks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(m, s) coefficient of each coalition's worth over its chance under the design."""
    n = len(weights)
    sizes = masks.sum(axis=1)[:, None]
    chances, drawn = size_chances(weights), paired_chances(weights)[sizes - 1]
    return np.where(masks, chances[sizes - 1] * n / (sizes * drawn), -chances[sizes] * n / ((n - sizes) * drawn))


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
    by_size, slopes = _fit(drawn[~held].reshape(others, n), residuals[~held].reshape(others, q), by_member)
    own, worth = drawn[held], residuals[held]
    worth = worth - by_size[own.sum(axis=2)] - own @ slopes
    factors = _factors(own.reshape(-1, n), weights).reshape(own.shape)
    sums, squares = _moments(factors, worth)
    known = (size_chances(weights) @ np.diff(by_size, axis=0))[:, None] + slopes.T
    return sums + held.sum() * known, np.maximum(squares - sums**2 / held.sum(), 0.0)


def _reuse(
    masks: np.ndarray, utilities: np.ndarray, weights: np.ndarray, confidence: float, by_member: bool
) -> Estimate:
    total, drawn, worth = split_pairs(masks, utilities)
    n, pairs = masks.shape[1], len(drawn)
    residuals = worth - drawn.mean(axis=2)[:, :, None] * total
    # Too few pairs for a fit are one fold, whose simpler game is the straight line from nobody to everybody.
    folds = FOLDS if pairs >= 2 * FOLDS else min(pairs, 1)
    parts = [_fold(drawn, residuals, np.arange(pairs) % folds == fold, weights, by_member) for fold in range(folds)]
    values = total[:, None] / n + sum((part[0] for part in parts), np.zeros((len(total), n))) / max(pairs, 1)
    squares = sum((part[1] for part in parts), np.zeros_like(values))
    degrees = pairs - folds
    errors = np.sqrt(squares / (degrees * pairs)) if degrees > 0 else np.full_like(values, np.inf if n > 1 else 0.0)
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
        utilities: the worth of each, for every query.
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
    """Sample reuse with a game of sizes and an additive game taken off, once there are enough coalitions to fit both.

    Args, Raises: as `sample_reuse`.
    """
    return _reuse(masks, utilities, weights, confidence, by_member=True)
