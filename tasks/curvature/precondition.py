"""Curvatures whatever their kind, and (H + lambda I)^-1 applied to whole rows of gradients, layer by layer."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from dataworth.storage.layer_table import kind_of
from dataworth.tasks.curvature.config import DampingConfig
from dataworth.tasks.curvature.dense import Dense
from dataworth.tasks.curvature.kronecker import Kronecker
from dataworth.tasks.curvature.lowrank import LowRank

__all__ = [
    "Curvature",
    "Damped",
    "Inverses",
    "Preconditioner",
    "applied",
    "curvature_of",
    "damped_layers",
    "self_influence",
]


@runtime_checkable
class Preconditioner(Protocol):
    """(H + lambda I)^-1 of one layer."""

    def applied(self, gradients: np.ndarray) -> np.ndarray:
        """(H + lambda I)^-1 g for each row g, float64."""

    def whitened(self, gradients: np.ndarray) -> np.ndarray:
        """(H + lambda I)^-1/2 g up to a rotation, float32: its squared norm is g^T (H + lambda I)^-1 g."""


@runtime_checkable
class Damped(Preconditioner, Protocol):
    """The same, and how strongly it is damped."""

    @property
    def damping(self) -> float:
        """lambda."""


@runtime_checkable
class Curvature(Protocol):
    """H of one layer in its projected space."""

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """As they are stored."""

    def damped(self, config: DampingConfig) -> Damped:
        """(H + lambda I)^-1."""


# Of every layer that counts its columns, and None where the curvature is the identity.
Inverses = Sequence[tuple[slice, Preconditioner | None]]


def curvature_of(arrays: Mapping[str, np.ndarray]) -> Curvature:
    """The curvature of which these are the `arrays`."""
    if "fisher" in arrays:
        return Dense(arrays["fisher"])
    return LowRank(**arrays) if "low_rank" in arrays else Kronecker(**arrays)


def damped_layers(curvatures: Mapping[str, Curvature], config: DampingConfig) -> dict[str, Damped]:
    """The damped inverse of every layer, by its name.

    Where nothing that was fitted on reached one of many alike, such as an expert, its curvature is zero: lambda is then
    the median of its kind, of those whose name is the same but for numbers.

    Raises:
        ValueError: the curvature of all of a kind is zero, and damping relative.
    """
    inverses: dict[str, Damped] = {}
    silent: dict[str, ValueError] = {}
    for name, curvature in curvatures.items():
        try:
            inverses[name] = curvature.damped(config)
        except ValueError as error:
            silent[name] = error
    of_kind: dict[str, list[float]] = {}
    for name, inverse in inverses.items():
        of_kind.setdefault(kind_of(name), []).append(inverse.damping)
    for name, reason in silent.items():
        alike = of_kind.get(kind_of(name))
        if alike is None:
            raise ValueError(f"layer {name}: {reason}") from reason
        inverses[name] = curvatures[name].damped(DampingConfig(rule="absolute", value=float(np.median(alike))))
    return inverses


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
