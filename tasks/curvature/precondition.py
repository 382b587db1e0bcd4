"""(H + lambda I)^-1 applied to gradients, layer by layer, through an eigendecomposition in float64."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

__all__ = ["DampedInverse", "eigendecomposition"]


def eigendecomposition(
    matrix: Float[np.ndarray, "k k"],
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k k"]]:
    """Eigenvalues, never below zero, and eigenvectors (columns) of a positive semi-definite matrix, in float64."""
    eigenvalues, eigenvectors = np.linalg.eigh(matrix.astype(np.float64))
    return np.maximum(eigenvalues, 0.0), eigenvectors


@dataclass(frozen=True)
class DampedInverse:
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

    def whitened(self, gradients: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """(H + lambda I)^-1/2 g in the eigenbasis: its squared norm is g^T (H + lambda I)^-1 g."""
        return (gradients.astype(np.float64) @ self.eigenvectors) / np.sqrt(self.eigenvalues + self.damping)
