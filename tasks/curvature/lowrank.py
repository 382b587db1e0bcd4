"""The Fisher matrix of a wide layer as a low-rank matrix plus a diagonal, from one pass over the rows.

H ~ U U^T + diag(r), with r >= 0 the part of H's diagonal that U U^T misses. U comes from the Nystrom approximation
H ~ Y (W^T Y)^-1 Y^T of the sketch Y = H W with a Gaussian W, which a stream of rows adds up: Y = sum of g (g^T W).
Source: Tropp, Yurtsever, Udell & Cevher 2017 (arXiv 1706.05736), algorithm 3; the inverse by Woodbury's identity.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from dataworth.tasks.curvature.config import DampingConfig
from dataworth.tasks.curvature.damping import damping

__all__ = ["LowRank", "LowRankInverse", "gaussian_matrix"]


def gaussian_matrix(n_columns: int, rank: int, seed: int, number: int) -> Float[np.ndarray, "c r"]:
    """W: Gaussian, orthonormalised, (n_columns, at most rank), of the layer of a number."""
    generator = np.random.default_rng([seed, number])
    return np.linalg.qr(generator.standard_normal((n_columns, min(rank, n_columns))))[0]


@dataclass(frozen=True)
class LowRank:
    """H ~ U U^T + diag(r) of one layer.

    Args:
        low_rank: (k, rank) U.
        residual: (k,) r >= 0.
    """

    low_rank: np.ndarray
    residual: np.ndarray

    @classmethod
    def of_sketch(
        cls, sketch: Float[np.ndarray, "c r"], matrix: Float[np.ndarray, "c r"], diagonal: Float[np.ndarray, " c"]
    ) -> "LowRank":
        """From what a pass over the rows leaves, float64.

        Args:
            sketch: Y = H W.
            matrix: W, orthonormal columns.
            diagonal: of H.
        """
        # A small shift keeps the Cholesky factor of a singular core defined; it is taken off the eigenvalues again.
        shift = np.finfo(np.float64).eps * max(float(np.linalg.norm(sketch)), np.finfo(np.float64).tiny) * len(sketch)
        shifted = sketch + shift * matrix
        core = matrix.T @ shifted
        factor = np.linalg.cholesky((core + core.T) / 2)
        half = np.linalg.solve(factor, shifted.T).T
        vectors, singular, _ = np.linalg.svd(half, full_matrices=False)
        low_rank = vectors * np.sqrt(np.maximum(singular**2 - shift, 0.0))
        return cls(low_rank, np.maximum(diagonal - (low_rank**2).sum(axis=1), 0.0))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """As they are stored."""
        return {"low_rank": self.low_rank, "residual": self.residual}

    @property
    def spectrum(self) -> Float[np.ndarray, " c"]:
        """An estimate of the eigenvalues, with H's trace: the residual spread over all directions."""
        eigenvalues = np.full(len(self.residual), float(self.residual.mean()))
        leading = np.linalg.svd(self.low_rank, compute_uv=False) ** 2
        eigenvalues[: len(leading)] += leading
        return eigenvalues

    def damped(self, config: DampingConfig) -> "LowRankInverse":
        """(H + lambda I)^-1.

        Raises:
            ValueError: relative damping of a curvature that is zero.
        """
        return LowRankInverse(self.low_rank, self.residual, damping(self.spectrum, config))


@dataclass(frozen=True)
class LowRankInverse:
    """(H + lambda I)^-1 of one layer, H = U U^T + diag(r), by Woodbury's identity.

    Args:
        low_rank: (k, rank) U.
        residual: (k,) r >= 0.
        damping: lambda > 0.
    """

    low_rank: np.ndarray
    residual: np.ndarray
    damping: float

    @cached_property
    def _parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """1 / sqrt(d), and V, s of V diag(s^2) V^T = d^-1/2 U U^T d^-1/2 with d = r + lambda."""
        scale = 1 / np.sqrt(self.residual + self.damping)
        vectors, singular, _ = np.linalg.svd(self.low_rank * scale[:, None], full_matrices=False)
        return scale, vectors, singular

    def applied(self, gradients: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """(H + lambda I)^-1 g for each row g, float64."""
        scale, vectors, singular = self._parts
        scaled = gradients.astype(np.float64) * scale
        shrunk = ((scaled @ vectors) * (singular**2 / (1 + singular**2))) @ vectors.T
        return (scaled - shrunk) * scale

    def whitened(self, gradients: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """(H + lambda I)^-1/2 g up to a rotation, float32: its squared norm is g^T (H + lambda I)^-1 g."""
        scale, vectors, singular = (part.astype(np.float32) for part in self._parts)
        scaled = gradients.astype(np.float32) * scale
        return scaled - ((scaled @ vectors) * (1 - 1 / np.sqrt(1 + singular**2))) @ vectors.T
