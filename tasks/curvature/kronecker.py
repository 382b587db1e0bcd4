"""A curvature that is a Kronecker product in its eigenbasis, as KFAC and EK-FAC make it, and its damped inverse.

Sources: Martens & Grosse 2015 (arXiv 1503.05671); George et al. 2018 (arXiv 1806.03884).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from dataworth.tasks.curvature.config import DampingConfig
from dataworth.tasks.curvature.damping import damping
from dataworth.tasks.curvature.dense import eigendecomposition

__all__ = ["Covariances", "Kronecker", "KroneckerInverse"]


@dataclass(frozen=True)
class Covariances:
    """KFAC's two factors of one layer, means over tokens.

    Args:
        inputs: (k_in, k_in) A = mean of x x^T.
        outputs: (k_out, k_out) S = mean of d d^T, of the loss' gradients d at the outputs.
    """

    inputs: np.ndarray
    outputs: np.ndarray

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Covariances":
        """As they are stored."""
        return cls(arrays["input_covariance"], arrays["output_covariance"])

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """As they are stored."""
        return {"input_covariance": self.inputs, "output_covariance": self.outputs}

    def kronecker(self) -> "Kronecker":
        """KFAC: S x A."""
        inputs, input_eigenvectors = eigendecomposition(self.inputs)
        outputs, output_eigenvectors = eigendecomposition(self.outputs)
        return Kronecker(np.outer(outputs, inputs), output_eigenvectors, input_eigenvectors)


@dataclass(frozen=True)
class Kronecker:
    """H = (Q_S x Q_A) diag(w) (Q_S x Q_A)^T of one layer, on gradients flattened by rows.

    Args:
        eigenvalues: (k_out, k_in) w >= 0; of KFAC products of means over tokens, of EK-FAC means over examples: the
            same lambda means different things.
        output_eigenvectors: (k_out, k_out) Q_S, one a column.
        input_eigenvectors: (k_in, k_in) Q_A.
    """

    eigenvalues: np.ndarray
    output_eigenvectors: np.ndarray
    input_eigenvectors: np.ndarray

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """As they are stored."""
        return {
            "eigenvalues": self.eigenvalues,
            "output_eigenvectors": self.output_eigenvectors,
            "input_eigenvectors": self.input_eigenvectors,
        }

    def damped(self, config: DampingConfig) -> "KroneckerInverse":
        """(H + lambda I)^-1.

        Raises:
            ValueError: relative damping of a curvature that is zero.
        """
        return KroneckerInverse(**self.arrays, damping=damping(self.eigenvalues.ravel(), config))


@dataclass(frozen=True)
class KroneckerInverse:
    """(H + lambda I)^-1 of one layer.

    Args:
        eigenvalues, output_eigenvectors, input_eigenvectors: of H.
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
