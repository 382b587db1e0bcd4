"""Overlap: which sources stand in for each other.

    overlap_ij = b_ij / sqrt(b_ii b_jj)

with b the interactions of the second-order game (positive semi-definite): 1 for a source and its copy, 0 for sources
that teach different things, negative for sources that strengthen each other.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

__all__ = ["overlap_rows", "overlaps"]


def overlaps(interactions: Float[np.ndarray, "s s"]) -> Float[np.ndarray, "s s"]:
    """Interactions between -1 and 1; NaN in the row and the column of a source whose own is not positive.

    Args:
        interactions: b, in the unit of the values, symmetric.
    """
    own = np.diagonal(interactions)
    sizes = np.sqrt(np.where(own > 0, own, np.nan))
    # Each division by itself: the product of two small sizes could be 0. Clipped for rounding.
    return np.clip(interactions / sizes[:, None] / sizes[None, :], -1.0, 1.0)


def overlap_rows(names: Sequence[str], interactions: Float[np.ndarray, "s s"], query_id: str) -> list[dict[str, Any]]:
    """Rows of OVERLAP: every pair of different sources once, in the order of the names.

    Args:
        names: of the sources.
        interactions: b of the query.
        query_id: which query they are of.
    """
    matrix = overlaps(interactions)
    return [
        {
            "query_id": query_id,
            "source": names[one],
            "other": names[two],
            "overlap": None if np.isnan(matrix[one, two]) else float(matrix[one, two]),
        }
        for one, two in combinations(range(len(names)), 2)
    ]
