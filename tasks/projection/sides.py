"""What is done to one side of a layer: its inputs (activations) or its outputs (output gradients).

A side maps n dimensions to k. It is linear, so that projecting both sides of every token's outer product projects
the layer's gradient. Where a layer has a bias, the last input dimension is the trailing 1, which is added here.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding, linear, one_hot, pad

__all__ = [
    "BasisSide",
    "CoordinateSide",
    "IdentitySide",
    "Side",
    "followed_by",
    "side_matrices",
    "side_rows",
    "stored_side",
]


@runtime_checkable
class Side(Protocol):
    """One side of a projection."""

    @property
    def size(self) -> int:
        """k, dimensions kept."""

    def projected(self, vectors: Tensor, *, trailing_one: bool) -> Tensor:
        """(…, n or n - 1) → (…, k); `trailing_one`: the last of the n dimensions is a 1 that the vectors lack."""

    def looked_up(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """(n, t) → (n, t, k): of vectors that are 1 at one place and 0 elsewhere."""

    def to(self, device: torch.device, dtype: torch.dtype) -> "Side":
        """The same side on a device, in the model's data type."""


@dataclass(frozen=True)
class IdentitySide:
    """Keeps all n dimensions."""

    size: int

    def projected(self, vectors: Float[Tensor, "... n"], *, trailing_one: bool) -> Float[Tensor, "... k"]:
        """The vectors, with the trailing 1 where they lack it."""
        return pad(vectors, (0, 1), value=1.0) if trailing_one else vectors

    def looked_up(self, ids: Int[Tensor, "n t"], dtype: torch.dtype) -> Float[Tensor, "n t k"]:
        """The vectors themselves."""
        return one_hot(ids, self.size).to(dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> "IdentitySide":
        """Itself."""
        return self


@dataclass(frozen=True)
class BasisSide:
    """A dense basis: k rows of n entries (random Gaussian, or leading eigenvectors)."""

    basis: Tensor

    @property
    def size(self) -> int:
        return self.basis.shape[0]

    def projected(self, vectors: Float[Tensor, "... n"], *, trailing_one: bool) -> Float[Tensor, "... k"]:
        """basis @ vector for every vector."""
        if trailing_one:
            return linear(vectors, self.basis[:, :-1], self.basis[:, -1])
        return linear(vectors, self.basis)

    def looked_up(self, ids: Int[Tensor, "n t"], dtype: torch.dtype) -> Float[Tensor, "n t k"]:
        """Columns of the basis."""
        return embedding(ids, self.basis.T).to(dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> "BasisSide":
        """The same basis elsewhere."""
        return BasisSide(self.basis.to(device, dtype))


@dataclass(frozen=True)
class CoordinateSide:
    """A random subset of k of the n coordinates, scaled by sqrt(n / k): inner products keep their expectation.

    Args:
        index: (k,) int64 coordinates, increasing.
        n: dimensions of the side.
    """

    index: Tensor
    n: int

    @property
    def size(self) -> int:
        return self.index.shape[0]

    def projected(self, vectors: Float[Tensor, "... n"], *, trailing_one: bool) -> Float[Tensor, "... k"]:
        """The chosen coordinates of every vector."""
        scale = (self.n / self.size) ** 0.5
        has_one = trailing_one and int(self.index[-1]) == self.n - 1
        chosen = self.index[:-1] if has_one else self.index
        # Measured on a CPU: selecting columns of a matrix is 2 to 7 times faster than the last axis of three.
        kept = vectors.flatten(0, -2).index_select(1, chosen).mul_(scale)
        kept = pad(kept, (0, 1), value=scale) if has_one else kept
        return kept.view(*vectors.shape[:-1], self.size)

    def looked_up(self, ids: Int[Tensor, "n t"], dtype: torch.dtype) -> Float[Tensor, "n t k"]:
        """1, scaled, where the place is among the chosen ones."""
        places = torch.searchsorted(self.index, ids).clamp_(max=self.size - 1)
        scale = (self.index[places] == ids).to(dtype) * (self.n / self.size) ** 0.5
        return one_hot(places, self.size).to(dtype) * scale[..., None]

    def to(self, device: torch.device, dtype: torch.dtype) -> "CoordinateSide":
        """The same coordinates elsewhere."""
        return replace(self, index=self.index.to(device))


def side_matrices(side: Side, name: str) -> dict[str, np.ndarray]:
    """What has to be stored of a side: `NAME_basis` or `NAME_index`, nothing for the identity."""
    if isinstance(side, BasisSide):
        return {f"{name}_basis": side.basis.numpy()}
    if isinstance(side, CoordinateSide):
        return {f"{name}_index": side.index.numpy()}
    return {}


def side_rows(side: Side, n: int) -> Tensor:
    """(k, n) float64: the matrix of a side of n dimensions."""
    cpu = torch.device("cpu")
    if isinstance(side, BasisSide):
        return side.basis.to(cpu, torch.float64)
    exact = side.to(cpu, torch.float64)
    return exact.projected(torch.eye(n, dtype=torch.float64), trailing_one=False).T.contiguous()


def followed_by(side: Side, n: int, matrix: Float[np.ndarray, "j k"]) -> BasisSide:
    """A side of n dimensions, and then a matrix, in float64 on the CPU."""
    moved = torch.from_numpy(np.ascontiguousarray(matrix, np.float64))
    return BasisSide(moved if isinstance(side, IdentitySide) else moved @ side_rows(side, n))


def stored_side(matrices: dict[str, np.ndarray], name: str, n: int) -> Any:
    """The side that `side_matrices` described.

    Args:
        matrices: of one layer.
        name: `input` or `output`.
        n: dimensions of the side.
    """
    if f"{name}_basis" in matrices:
        return BasisSide(torch.from_numpy(matrices[f"{name}_basis"]))
    if f"{name}_index" in matrices:
        return CoordinateSide(torch.from_numpy(matrices[f"{name}_index"]), n)
    return IdentitySide(n)
