"""Queries made ready for a pass over the store: preconditioned layer by layer, with their sum as one row more."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from jaxtyping import Float

from dataworth.storage.layer_table import Layer
from dataworth.tasks.curvature.precondition import Inverses, Preconditioner, applied, self_influence
from dataworth.tasks.scoring.blocks import Preconditioned

__all__ = ["chosen_inverses", "chosen_layers", "preconditioned"]


def chosen_layers(layers: Sequence[Layer], patterns: Sequence[str]) -> list[Layer]:
    """The layers that count: those whose name matches a pattern, all without one.

    Args:
        layers: the layer table of a gradient store.
        patterns: of names, with * and ?.

    Raises:
        ValueError: a pattern matches no layer.
    """
    for pattern in patterns:
        if not any(fnmatchcase(layer.name, pattern) for layer in layers):
            example = f", such as {layers[0].name}" if layers else ""
            raise ValueError(f"the pattern {pattern!r} matches none of the store's {len(layers)} layers{example}")
    return [layer for layer in layers if not patterns or any(fnmatchcase(layer.name, each) for each in patterns)]


def chosen_inverses(layers: Sequence[Layer], by_name: Mapping[str, Preconditioner]) -> Inverses:
    """The damped inverses of the layers that count; a layer that has none stays as it is."""
    return [(layer.columns, by_name.get(layer.name)) for layer in layers]


def preconditioned(rows: Float[np.ndarray, "q c"], inverses: Inverses, kind: str, n_examples: int) -> Preconditioned:
    """(H + lambda I)^-1 applied to every query, and one row more: their sum, which stands for all queries.

    Args:
        rows: (n_queries, n_columns) gradients.
        inverses: of the layers that count; all other columns become 0.
        kind: `dot`, `relative` (rows of the store are divided by the root of their self-influence) or `cosine` (the
            queries, too).
        n_examples: windows that the model was trained on: curvatures are means over them, and what one of them did to
            the parameters is 1/n of what its gradient says. So `dot` is in nats of the query's loss. 1 without a
            curvature: products of gradients have no unit.
    """
    ready = applied(rows, inverses)
    if kind == "cosine":
        norms = np.sqrt(self_influence(rows, inverses))
        ready = np.divide(ready, norms[:, None], out=np.zeros_like(ready), where=norms[:, None] > 0)
    if kind == "dot":
        ready = ready / n_examples
    ready = np.concatenate([ready, ready.sum(axis=0, keepdims=True)])
    return Preconditioned(ready.astype(np.float32), None if kind == "dot" else inverses)
