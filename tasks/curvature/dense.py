"""A curvature that is kept whole, and its damped inverse."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from dataworth.tasks.curvature.config import DampingConfig
from dataworth.tasks.curvature.damping import damping

__all__ = ["Dense", "DenseInverse", "eigendecomposition"]


def eigendecomposition(
    matrix: Float[np.ndarray, "k k"],
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k k"]]:
    """Eigenvalues, never below zero, and eigenvectors (columns) of a positive semi-definite matrix, in float64."""
    eigenvalues, eigenvectors = np.linalg.eigh(matrix.astype(np.float64))
    return np.maximum(eigenvalues, 0.0), eigenvectors


@dataclass(frozen=True)
class Dense:
    """H of one layer.

    Args:
        matrix: (k, k), a mean over examples.
    """

    matrix: np.ndarray

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """As they are stored."""
        return {"fisher": self.matrix}

    def damped(self, config: DampingConfig) -> "DenseInverse":
        """(H + lambda I)^-1.

        Raises:
            ValueError: relative damping of a curvature that is zero.
        """
        eigenvalues, eigenvectors = eigendecomposition(self.matrix)
        return DenseInverse(eigenvalues, eigenvectors, damping(eigenvalues, config))


@dataclass(frozen=True)
class DenseInverse:
    """(H + lambda I)^-1 of one layer, H = V diag(w) V^T.

    Args:
        eigenvalues: (k,) w >= 0.
        eigenvectors: (k, k) V, one a column.
        damping: lambda > 0.
    """

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    damping: float

    def applied(self, gradients: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """(H + lambda I)^-1 g for each row g, float64."""
        rotated = gradients.astype(np.float64) @ self.eigenvectors
        return (rotated / (self.eigenvalues + self.damping)) @ self.eigenvectors.T

    @cached_property
    def _factor(self) -> np.ndarray:
        return (self.eigenvectors / np.sqrt(self.eigenvalues + self.damping)).astype(np.float32)

    def whitened(self, gradients: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """(H + lambda I)^-1/2 g in the eigenbasis, float32: its squared norm is g^T (H + lambda I)^-1 g."""
        return gradients.astype(np.float32) @ self._factor
