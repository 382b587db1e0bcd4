"""The Fisher matrix in the projected space, one dense block a layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["MOST_COLUMNS", "FisherSum"]

# Beyond this a dense block costs more to store and factorise than it tells: 4096 columns are 128 MB in float64.
MOST_COLUMNS = 4096


class FisherSum:
    """Running sum over examples of g g^T for each layer: memory independent of the number of examples.

    H_l = (1 / n) sum over examples (and label draws) of g_l g_l^T. Products are taken in the rows' precision, sums in
    float64. With labels sampled from the model it estimates the true Fisher, with the data's the empirical one
    (Martens & Grosse 2015).

    Args:
        layers: the layer table: `first_column` and `n_columns` of each layer.
    """

    def __init__(self, layers: Sequence[dict[str, Any]]) -> None:
        self._columns = [slice(layer["first_column"], layer["first_column"] + layer["n_columns"]) for layer in layers]
        self._sums = [np.zeros((layer["n_columns"], layer["n_columns"])) for layer in layers]
        self._count = 0

    def add(self, rows: Float[Tensor, "n c"]) -> None:
        """Add gradients of some examples."""
        for total, columns in zip(self._sums, self._columns, strict=True):
            block = rows[:, columns]
            total += torch.mm(block.T, block).cpu().numpy()
        self._count += len(rows)

    def mean(self) -> list[np.ndarray]:
        """Per layer (n_columns, n_columns) float64: mean over examples.

        Raises:
            ValueError: no example was added.
        """
        if self._count == 0:
            raise ValueError("the Fisher matrix of no example is not defined")
        return [total / self._count for total in self._sums]
