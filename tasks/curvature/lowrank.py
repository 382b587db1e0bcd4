"""The Fisher matrix of a wide layer as a low-rank matrix plus a diagonal, from one pass over the rows.

H ~ U U^T + diag(r), with r >= 0 the part of H's diagonal that U U^T misses. U comes from the Nystrom approximation
H ~ Y (W^T Y)^-1 Y^T of the sketch Y = H W with a Gaussian W, which a stream of rows adds up: Y = sum of g (g^T W).
Source: Tropp, Yurtsever, Udell & Cevher 2017 (arXiv 1706.05736), algorithm 3; the inverse by Woodbury's identity.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["LowRankInverse", "LowRankSum", "gaussian_matrix", "low_rank_plus_diagonal", "spectrum"]


class LowRankSum:
    """For each layer sum over examples of g (g^T W) and of g^2: memory n_columns x rank, not n_columns squared.

    Args:
        layers: by their number in the layer table: `first_column` and `n_columns` of each layer.
        rank: columns of W.
        seed: of W; the same for the same seed and layer number.
    """

    def __init__(self, layers: Mapping[int, Mapping[str, Any]], rank: int, seed: int) -> None:
        self._columns = {
            number: slice(layer["first_column"], layer["first_column"] + layer["n_columns"])
            for number, layer in layers.items()
        }
        self._matrices: dict[int, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        for number, layer in layers.items():
            matrix = torch.from_numpy(gaussian_matrix(int(layer["n_columns"]), rank, seed, number))
            self._matrices[number] = matrix
            self.sums[f"sketch {number}"] = torch.zeros(matrix.shape, dtype=torch.float64)
            self.sums[f"diagonal {number}"] = torch.zeros(len(matrix), dtype=torch.float64)

    def add(self, rows: Float[Tensor, "n c"]) -> None:
        """Add gradients of some examples."""
        for number, columns in self._columns.items():
            block = rows[:, columns]
            self._matrices[number] = self._matrices[number].to(block)
            product = torch.mm(block.T, torch.mm(block, self._matrices[number]))
            for key, part in ((f"sketch {number}", product), (f"diagonal {number}", (block.double() ** 2).sum(dim=0))):
                self.sums[key] = self.sums[key].to(rows.device).add_(part)


def gaussian_matrix(n_columns: int, rank: int, seed: int, number: int) -> Float[np.ndarray, "c r"]:
    """W: Gaussian, orthonormalised, (n_columns, at most rank), of one layer."""
    generator = np.random.default_rng([seed, number])
    return np.linalg.qr(generator.standard_normal((n_columns, min(rank, n_columns))))[0]


def low_rank_plus_diagonal(
    sketch: Float[np.ndarray, "c r"], matrix: Float[np.ndarray, "c r"], diagonal: Float[np.ndarray, " c"]
) -> tuple[Float[np.ndarray, "c r"], Float[np.ndarray, " c"]]:
    """U and r of H ~ U U^T + diag(r).

    Args:
        sketch: Y = H W.
        matrix: W, orthonormal columns.
        diagonal: of H.

    Returns:
        U (n_columns, rank) and r (n_columns,) >= 0, float64.
    """
    # A small shift keeps the Cholesky factor of a singular core defined; it is taken off the eigenvalues again.
    shift = np.finfo(np.float64).eps * max(float(np.linalg.norm(sketch)), np.finfo(np.float64).tiny) * len(sketch)
    shifted = sketch + shift * matrix
    core = matrix.T @ shifted
    factor = np.linalg.cholesky((core + core.T) / 2)
    half = np.linalg.solve(factor, shifted.T).T
    vectors, singular, _ = np.linalg.svd(half, full_matrices=False)
    low_rank = vectors * np.sqrt(np.maximum(singular**2 - shift, 0.0))
    return low_rank, np.maximum(diagonal - (low_rank**2).sum(axis=1), 0.0)


def spectrum(low_rank: Float[np.ndarray, "c r"], residual: Float[np.ndarray, " c"]) -> Float[np.ndarray, " c"]:
    """An estimate of the eigenvalues of U U^T + diag(r), with its trace: the residual spread over all directions."""
    eigenvalues = np.full(len(residual), float(residual.mean()))
    leading = np.linalg.svd(low_rank, compute_uv=False) ** 2
    eigenvalues[: len(leading)] += leading
    return eigenvalues


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
