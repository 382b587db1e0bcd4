"""Queries made ready for a pass over the store: preconditioned layer by layer, with their sum as one row more."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from dataworth.tasks.scoring.blocks import Preconditioned, Whitenings, self_influence

__all__ = ["Inverse", "LayerColumns", "layer_columns", "preconditioned", "whitenings"]

LayerColumns = Sequence[tuple[str, slice]]


@runtime_checkable
class Inverse(Protocol):
    """What is needed of a layer's curvature (see dataworth.tasks.curvature.precondition)."""

    def applied(self, gradients: np.ndarray) -> np.ndarray:
        """(H + lambda I)^-1 g for each row g."""

    def whitened(self, gradients: np.ndarray) -> np.ndarray:
        """(H + lambda I)^-1/2 g up to a rotation."""


def layer_columns(layers: Sequence[dict[str, Any]], patterns: Sequence[str]) -> LayerColumns:
    """Name and columns of the layers that count: those whose name matches a pattern, all without one.

    Args:
        layers: the layer table of a gradient store.
        patterns: of names, with * and ?.

    Raises:
        ValueError: a pattern matches no layer.
    """
    for pattern in patterns:
        if not any(fnmatchcase(layer["name"], pattern) for layer in layers):
            example = f", such as {layers[0]['name']}" if layers else ""
            raise ValueError(f"the pattern {pattern!r} matches none of the store's {len(layers)} layers{example}")
    return [
        (layer["name"], slice(layer["first_column"], layer["first_column"] + layer["n_columns"]))
        for layer in layers
        if not patterns or any(fnmatchcase(layer["name"], pattern) for pattern in patterns)
    ]


def whitenings(columns: LayerColumns, inverses: Mapping[str, Inverse]) -> Whitenings:
    """What self-influence needs: the columns of every layer that counts, and its whitening where it has one."""
    return [(where, inverses.get(name)) for name, where in columns]


def preconditioned(
    rows: Float[np.ndarray, "q c"], columns: LayerColumns, inverses: Mapping[str, Inverse], kind: str
) -> Preconditioned:
    """(H + lambda I)^-1 applied to every query, and one row more: their sum, which stands for all queries.

    Args:
        rows: (n_queries, n_columns) gradients.
        columns: the layers that count; all other columns become 0.
        inverses: of the layers' damped curvature; a layer without one stays as it is.
        kind: `dot`, `relative` (rows of the store are divided by the root of their self-influence) or `cosine` (the
            queries, too).
    """
    ready = np.zeros(rows.shape)
    for name, where in columns:
        ready[:, where] = inverses[name].applied(rows[:, where]) if name in inverses else rows[:, where]
    whitening = None if kind == "dot" else whitenings(columns, inverses)
    if kind == "cosine" and whitening is not None:
        norms = np.sqrt(self_influence(rows, whitening))
        ready = np.divide(ready, norms[:, None], out=np.zeros_like(ready), where=norms[:, None] > 0)
    ready = np.concatenate([ready, ready.sum(axis=0, keepdims=True)])
    return Preconditioned(ready.astype(np.float32), whitening)
