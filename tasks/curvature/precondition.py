"""Curvatures whatever their kind, and (H + lambda I)^-1 applied to whole rows of gradients, layer by layer."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from dataworth.tasks.curvature.config import DampingConfig
from dataworth.tasks.curvature.dense import Dense
from dataworth.tasks.curvature.kronecker import Kronecker
from dataworth.tasks.curvature.lowrank import LowRank

__all__ = ["Curvature", "Inverses", "Preconditioner", "applied", "curvature_of", "self_influence"]


@runtime_checkable
class Preconditioner(Protocol):
    """(H + lambda I)^-1 of one layer."""

    def applied(self, gradients: np.ndarray) -> np.ndarray:
        """(H + lambda I)^-1 g for each row g, float64."""

    def whitened(self, gradients: np.ndarray) -> np.ndarray:
        """(H + lambda I)^-1/2 g up to a rotation, float32: its squared norm is g^T (H + lambda I)^-1 g."""


@runtime_checkable
class Curvature(Protocol):
    """H of one layer in its projected space."""

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """As they are stored."""

    def damped(self, config: DampingConfig) -> Preconditioner:
        """(H + lambda I)^-1."""


# Of every layer that counts its columns, and None where the curvature is the identity.
Inverses = Sequence[tuple[slice, Preconditioner | None]]


def curvature_of(arrays: Mapping[str, np.ndarray]) -> Curvature:
    """The curvature of which these are the `arrays`."""
    if "fisher" in arrays:
        return Dense(arrays["fisher"])
    return LowRank(**arrays) if "low_rank" in arrays else Kronecker(**arrays)


def applied(rows: Float[np.ndarray, "n c"], inverses: Inverses) -> Float[np.ndarray, "n c"]:
    """(H + lambda I)^-1 g for each row g, float64; 0 in the columns of layers that do not count."""
    ready = np.zeros(rows.shape)
    for columns, inverse in inverses:
        ready[:, columns] = rows[:, columns] if inverse is None else inverse.applied(rows[:, columns])
    return ready


def self_influence(rows: Float[np.ndarray, "n c"], inverses: Inverses) -> Float[np.ndarray, " n"]:
    """g^T (H + lambda I)^-1 g for each row, summed over layers; float32 products, float64 sums."""
    total = np.zeros(len(rows))
    for columns, inverse in inverses:
        block = rows[:, columns].astype(np.float32)
        whitened = block if inverse is None else inverse.whitened(block)
        total += np.einsum("nk,nk->n", whitened, whitened, dtype=np.float64)
    return total
