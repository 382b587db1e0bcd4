"""The delete-a-group jackknife: how values would move had the sources contributed other documents of their kind.

Every source's documents are split into the same G groups. Replicate k leaves group k of every source out, scales the
rest of each source up to its size, and plays the game again:

    standard error = sqrt((G - 1) / G sum over k of (phi_k - mean of phi)^2).

Where a source's groups are uneven or some are empty, leaving one out and scaling up moves its sums more than sampling
does; its replicates are then drawn towards its whole by a factor that makes the error of its own sum unbiased: the
generalisation to uneven groups of Kott's extended jackknife, with which it agrees for documents of one size.

Source: Kott 2001, "The delete-a-group jackknife", Journal of Official Statistics 17 (4), 521-526.
"""

import numpy as np
from jaxtyping import Float, Int

__all__ = ["degrees_of_freedom", "jackknife_errors", "replicate_scales"]


def replicate_scales(
    counts: Int[np.ndarray, "s g"],
) -> tuple[Float[np.ndarray, "g s"], Float[np.ndarray, "g s"]]:
    """a and b with which replicate k of a source's sum x is a x - b x_k, x_k the sum over its group k.

    a = 1 - c + c n / (n - n_k) and b = c n / (n - n_k), c^-2 = (G - 1) / G sum over k of n_k / (n - n_k), which is 1
    for even groups. Of a source with fewer than 2 groups that are not empty nothing is known: a = 1 and b = 0.

    Args:
        counts: windows of each group of each source.
    """
    known = (counts > 0).sum(axis=1) > 1
    whole, n_groups = counts.sum(axis=1, keepdims=True).astype(np.float64), counts.shape[1]
    rest = np.where(known[:, None], whole - counts, 1.0)
    spread = (n_groups - 1) / n_groups * (counts / rest).sum(axis=1, keepdims=True)
    drawn = np.where(known[:, None], 1 / np.sqrt(np.where(known[:, None], spread, 1.0)), 0.0)
    dropped = drawn * whole / rest
    return (1 - drawn + dropped).T, dropped.T


def degrees_of_freedom(counts: Int[np.ndarray, "s g"]) -> Int[np.ndarray, " s"]:
    """Of each source's error: its groups that are not empty, less one; 0 where it has no error."""
    degrees: np.ndarray = np.maximum((counts > 0).sum(axis=1) - 1, 0)
    return degrees


def jackknife_errors(
    replicates: Float[np.ndarray, "g *q s"], counts: Int[np.ndarray, "s g"]
) -> Float[np.ndarray, "*q s"]:
    """Standard errors of values; NaN for a source with fewer than 2 groups that are not empty.

    Args:
        replicates: values with each group left out.
        counts: windows of each group of each source.
    """
    n_groups = len(replicates)
    errors = np.sqrt((n_groups - 1) * replicates.var(axis=0))
    return np.where(degrees_of_freedom(counts) > 0, errors, np.nan)
