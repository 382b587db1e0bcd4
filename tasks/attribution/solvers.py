"""Linear systems and eigenvalues from products of vectors with a symmetric matrix A alone."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

__all__ = ["NotConvergedError", "Product", "conjugate_gradients", "largest_eigenvalue", "lissa", "relative_residuals"]

# From (m, d) vectors to A v of each.
Product = Callable[[np.ndarray], np.ndarray]


class NotConvergedError(ArithmeticError):
    """An iteration ended without its result."""


def conjugate_gradients(
    product: Product, right: Float[np.ndarray, "m d"], tolerance: float, most_iterations: int
) -> Float[np.ndarray, "m d"]:
    """x with |b - A x| <= tolerance |b| for each b; every iteration is one product of those still under way.

    Args:
        product: A v; A positive definite.
        right: the b, one a row.
        tolerance: of the relative residual.
        most_iterations: exact arithmetic needs as many as A has different eigenvalues.

    Raises:
        NotConvergedError: the residual is still larger, or A has a direction of curvature not above zero.

    Source: Hestenes & Stiefel 1952; for influence Koh & Liang 2017 (arXiv 1703.04730), section 3.
    """
    solution, residual, direction = np.zeros_like(right), right.copy(), right.copy()
    squares = (residual**2).sum(axis=1)
    goal = tolerance**2 * squares
    active = np.flatnonzero(squares > goal)
    for _ in range(most_iterations):
        if not len(active):
            return solution
        ahead = product(direction[active])
        curvature = (direction[active] * ahead).sum(axis=1)
        if not (curvature > 0).all():
            raise NotConvergedError(
                "the damped curvature has a direction of negative or zero curvature: take more damping, or gauss_newton"
            )
        step = (squares[active] / curvature)[:, None]
        solution[active] += step * direction[active]
        residual[active] -= step * ahead
        after = (residual[active] ** 2).sum(axis=1)
        direction[active] = residual[active] + (after / squares[active])[:, None] * direction[active]
        squares[active] = after
        active = np.flatnonzero(squares > goal)
    if len(active):
        worst = float(np.sqrt((squares[active] * tolerance**2 / goal[active]).max()))
        raise NotConvergedError(
            f"conjugate gradients left a relative residual of {worst:.2g}, above {tolerance:.2g}, after "
            f"{most_iterations} iterations: allow more of them, a larger tolerance, or more damping"
        )
    return solution


def largest_eigenvalue(
    product: Product, size: int, seed: int, tolerance: float = 1e-3, most_iterations: int = 200
) -> float:
    """The largest magnitude of an eigenvalue of A, from below, by power iteration.

    Args:
        product: A v; A symmetric.
        size: d.
        seed: of the first vector.
        tolerance: of the last relative change.
        most_iterations: products.

    Raises:
        NotConvergedError: it still changes.
    """
    vector = np.random.default_rng(seed).standard_normal((1, size))
    before = 0.0
    for _ in range(most_iterations):
        vector = product(vector / np.linalg.norm(vector))
        magnitude = float(np.linalg.norm(vector))
        if abs(magnitude - before) <= tolerance * magnitude:
            return magnitude
        before = magnitude
    raise NotConvergedError(f"the largest eigenvalue still changed after {most_iterations} iterations: allow more")


def lissa(
    product: Callable[[int, np.ndarray], np.ndarray], right: Float[np.ndarray, "m d"], scale: float, depth: int
) -> Float[np.ndarray, "m d"]:
    """The series x_depth / scale, x_0 = b, x_j = b + x_(j-1) - A_j x_(j-1) / scale; its limit for A_j = A is A^-1 b.

    Args:
        product: (j, v) → A_j v, A_j a sample of A or A itself.
        right: the b, one a row.
        scale: above half the largest eigenvalue of A, and of the samples but for rare ones.
        depth: steps; what is left of an eigenvalue's error is (1 - eigenvalue / scale)^depth.

    Raises:
        NotConvergedError: the series diverges.

    Source: Agarwal et al. 2017 (arXiv 1602.03943), algorithm 1; Koh & Liang 2017 (arXiv 1703.04730), section 3.
    """
    estimate = right.copy()
    # No term of a converging series is longer than the first, b.
    longest = (depth + 1) * np.linalg.norm(right, axis=1)
    for step in range(depth):
        estimate = right + estimate - product(step, estimate) / scale
        if not (np.linalg.norm(estimate, axis=1) <= longest * (1 + 1e-9)).all():
            raise NotConvergedError(
                f"the series diverges at step {step + 1} with a scale of {scale:.3g}: take a larger"
            )
    return estimate / scale


def relative_residuals(
    product: Product, solution: Float[np.ndarray, "m d"], right: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, " m"]:
    """|b - A x| / |b| of each; 0 where b is."""
    lengths = np.linalg.norm(right, axis=1)
    left = np.linalg.norm(right - product(solution), axis=1)
    return np.divide(left, lengths, out=np.zeros_like(left), where=lengths > 0)
