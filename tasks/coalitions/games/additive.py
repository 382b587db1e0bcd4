"""The additive game: a coalition is worth the sum of its documents' scores.

Its Shapley value (and every other semivalue) of a source is that source's own sum, in closed form. Two copies of one
source are both paid in full.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t as student

__all__ = ["interval", "shares", "standard_errors"]


def standard_errors(
    sums: Float[np.ndarray, "q s"], squares: Float[np.ndarray, "q s"], counts: Int[np.ndarray, " s"]
) -> Float[np.ndarray, "q s"]:
    """Standard error of a source's sum, had it contributed another sample of as many documents of its kind.

    sqrt(n) times the sample standard deviation of its documents' scores; NaN for a source of fewer than 2 documents.

    Args:
        sums, squares: sum and sum of squares of the scores of each source's documents.
        counts: documents of each source.
    """
    errors = np.full(sums.shape, np.nan)
    several = counts > 1
    n = counts[several].astype(np.float64)
    variance = np.maximum(squares[:, several] - sums[:, several] ** 2 / n, 0.0) / (n - 1)
    errors[:, several] = np.sqrt(n * variance)
    return errors


def interval(
    values: Float[np.ndarray, "q s"],
    errors: Float[np.ndarray, "q s"],
    counts: Int[np.ndarray, " s"],
    confidence: float,
) -> tuple[Float[np.ndarray, "q s"], Float[np.ndarray, "q s"]]:
    """Low and high end of Student's t interval with n - 1 degrees of freedom; NaN where there is no error."""
    quantile = student.ppf(0.5 + confidence / 2, np.maximum(counts - 1, 1))
    return values - quantile * errors, values + quantile * errors


def shares(values: Float[np.ndarray, "q s"]) -> Float[np.ndarray, "q s"]:
    """Each source's part of its query's positive total: 0 for a negative value, NaN where none is positive."""
    positive = np.maximum(values, 0.0)
    totals = positive.sum(axis=1, keepdims=True)
    return np.divide(positive, totals, out=np.full_like(positive, np.nan), where=totals > 0)
