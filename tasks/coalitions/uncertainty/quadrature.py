"""Errors of different causes together."""

import numpy as np

__all__ = ["in_quadrature"]


def in_quadrature(parts: list[np.ndarray]) -> np.ndarray:
    """Root of the sum of the squares of what is known; NaN where nothing is."""
    stacked = np.stack(parts)
    total: np.ndarray = np.sqrt(np.nansum(stacked**2, axis=0))
    return np.where(np.isnan(stacked).all(axis=0), np.nan, total)
