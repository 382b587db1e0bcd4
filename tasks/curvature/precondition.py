"""(H + lambda I)^-1 applied to gradients, layer by layer, through eigendecompositions in float64."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from dataworth.tasks.curvature.config import DampingConfig
from dataworth.tasks.curvature.damping import damping
from dataworth.tasks.curvature.lowrank import LowRankInverse, spectrum

__all__ = ["DampedInverse", "KroneckerInverse", "Preconditioner", "damped_inverse", "eigendecomposition"]


@runtime_checkable
class Preconditioner(Protocol):
    """(H + lambda I)^-1 of one layer."""

    def applied(self, gradients: np.ndarray) -> np.ndarray:
        """(H + lambda I)^-1 g for each row g, float64."""

    def whitened(self, gradients: np.ndarray) -> np.ndarray:
        """(H + lambda I)^-1/2 g up to a rotation, float32: its squared norm is g^T (H + lambda I)^-1 g."""


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

    @cached_property
    def _factor(self) -> np.ndarray:
        return (self.eigenvectors / np.sqrt(self.eigenvalues + self.damping)).astype(np.float32)

    def whitened(self, gradients: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """(H + lambda I)^-1/2 g in the eigenbasis, float32: its squared norm is g^T (H + lambda I)^-1 g."""
        return gradients.astype(np.float32) @ self._factor


@dataclass(frozen=True)
class KroneckerInverse:
    """(H + lambda I)^-1 of one layer, H = (Q_S x Q_A) diag(w) (Q_S x Q_A)^T on gradients flattened by rows.

    Args:
        eigenvalues: (k_out, k_in) w >= 0.
        output_eigenvectors: (k_out, k_out) Q_S, one a column.
        input_eigenvectors: (k_in, k_in) Q_A.
        damping: lambda > 0.
    """

    eigenvalues: np.ndarray
    output_eigenvectors: np.ndarray
    input_eigenvectors: np.ndarray
    damping: float

    def applied(self, gradients: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """(H + lambda I)^-1 g for each row g, float64."""
        blocks = gradients.astype(np.float64).reshape(len(gradients), *self.eigenvalues.shape)
        rotated = self.output_eigenvectors.T @ (blocks @ self.input_eigenvectors)
        solved = rotated / (self.eigenvalues + self.damping)
        return (self.output_eigenvectors @ (solved @ self.input_eigenvectors.T)).reshape(gradients.shape)

    @cached_property
    def _factors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scale = 1 / np.sqrt(self.eigenvalues + self.damping)
        parts = (self.output_eigenvectors.T, self.input_eigenvectors, scale)
        return tuple(np.ascontiguousarray(part, np.float32) for part in parts)  # type: ignore[return-value]  # of three

    def whitened(self, gradients: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """(H + lambda I)^-1/2 g in the eigenbasis, float32: its squared norm is g^T (H + lambda I)^-1 g."""
        outputs, inputs, scale = self._factors
        blocks = gradients.astype(np.float32).reshape(len(gradients), *self.eigenvalues.shape)
        return ((outputs @ (blocks @ inputs)) * scale).reshape(gradients.shape)


def damped_inverse(matrices: Mapping[str, np.ndarray], config: DampingConfig) -> Preconditioner:
    """The damped inverse of one layer's curvature.

    Args:
        matrices: `fisher`, per-example mean; `low_rank` and `residual`, the same of a wide layer; or
            `input_eigenvectors`, `output_eigenvectors` and `eigenvalues`, of EK-FAC per-example means, of KFAC products
            of per-token means. The same lambda means different things.
        config: the rule of lambda.

    Raises:
        ValueError: relative damping of a curvature that is zero.
    """
    if "fisher" in matrices:
        eigenvalues, eigenvectors = eigendecomposition(matrices["fisher"])
        return DampedInverse(eigenvalues, eigenvectors, damping(eigenvalues, config))
    if "low_rank" in matrices:
        low_rank, residual = matrices["low_rank"], matrices["residual"]
        return LowRankInverse(low_rank, residual, damping(spectrum(low_rank, residual), config))
    eigenvalues = matrices["eigenvalues"]
    return KroneckerInverse(
        eigenvalues,
        matrices["output_eigenvectors"],
        matrices["input_eigenvectors"],
        damping(eigenvalues.ravel(), config),
    )
