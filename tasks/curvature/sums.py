"""Running sums over examples that become a curvature: memory independent of the number of examples.

The rows added carry the weights of their labels: sqrt(weight) g, so that the sum over an example's labels of the outer
products is its expectation. Examples are counted apart from rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["MAX_COLUMNS", "EigenvalueSum", "FisherSum", "GroupedFisherSum", "RowSum"]

# Beyond this a dense block costs more to store and factorise than it tells: 4096 columns are 128 MB in float64.
MAX_COLUMNS = 4096


@runtime_checkable
class RowSum(Protocol):
    """What fitting needs of a sum over gradient rows."""

    sums: dict[str, Tensor]

    def add(self, rows: Tensor) -> None: ...


class FisherSum:
    """sum over examples of g g^T for each layer, dense: H_l = sum / n_examples.

    Products are taken in the rows' precision, sums in float64 on the rows' device. With labels sampled from the model
    it estimates the true Fisher, with the data's the empirical one (Martens & Grosse 2015).

    Args:
        layers: by their number in the layer table: `first_column` and `n_columns` of each layer.
    """

    def __init__(self, layers: Mapping[int, Mapping[str, Any]]) -> None:
        self._columns = {
            number: slice(layer["first_column"], layer["first_column"] + layer["n_columns"])
            for number, layer in layers.items()
        }
        self.sums = {
            str(number): torch.zeros(layer["n_columns"], layer["n_columns"], dtype=torch.float64)
            for number, layer in layers.items()
        }

    def add(self, rows: Float[Tensor, "n c"]) -> None:
        """Add gradients of some examples."""
        for number, columns in self._columns.items():
            block = rows[:, columns]
            total = self.sums[str(number)].to(rows.device)
            self.sums[str(number)] = total.add_(torch.mm(block.T, block))


class GroupedFisherSum:
    """sum over examples of g g^T for each layer and group of examples, dense: G times the memory of `FisherSum`.

    Products are taken in float64, so that how examples are grouped does not change what the groups add up to.

    Args:
        layers: the layer table: `first_column` and `n_columns` of each layer.
        groups: (n,) number of the group of every example there is.
        n_groups: G.
    """

    def __init__(self, layers: Sequence[Mapping[str, Any]], groups: Int[np.ndarray, " n"], n_groups: int) -> None:
        self._columns = [slice(layer["first_column"], layer["first_column"] + layer["n_columns"]) for layer in layers]
        self._groups = groups
        self.sums = {
            str(number): torch.zeros(n_groups, layer["n_columns"], layer["n_columns"], dtype=torch.float64)
            for number, layer in enumerate(layers)
        }

    def add(self, rows: Float[Tensor, "m c"], examples: Int[np.ndarray, " m"]) -> None:
        """Add gradients of the examples of these numbers."""
        groups = self._groups[examples]
        for number, columns in enumerate(self._columns):
            total = self.sums[str(number)] = self.sums[str(number)].to(rows.device)
            for group in np.unique(groups):
                block = rows[torch.from_numpy(groups == group).to(rows.device), columns].double()
                total[group] += block.T @ block


class EigenvalueSum:
    """sum over examples of (Q_S^T g Q_A)^2 for each layer: EK-FAC's corrected eigenvalues are sum / n_examples.

    Source: George et al. 2018 (arXiv 1806.03884), equation 11; for language models Grosse et al. 2023
    (arXiv 2308.03296), equation 20.

    Args:
        layers: the layer table: `first_column`, `k_in` and `k_out` of each layer.
        input_eigenvectors: (k_in, k_in) Q_A of each layer, one a column.
        output_eigenvectors: (k_out, k_out) Q_S of each layer.
    """

    def __init__(
        self,
        layers: Sequence[Mapping[str, Any]],
        input_eigenvectors: Sequence[np.ndarray],
        output_eigenvectors: Sequence[np.ndarray],
    ) -> None:
        self._layers = list(layers)
        self._inputs = [torch.from_numpy(matrix) for matrix in input_eigenvectors]
        self._outputs = [torch.from_numpy(matrix) for matrix in output_eigenvectors]
        self.sums = {
            str(number): torch.zeros(layer["k_out"], layer["k_in"], dtype=torch.float64)
            for number, layer in enumerate(layers)
        }

    def add(self, rows: Float[Tensor, "n c"]) -> None:
        """Add gradients of some examples."""
        for number, layer in enumerate(self._layers):
            first, k_out, k_in = layer["first_column"], layer["k_out"], layer["k_in"]
            block = rows[:, first : first + k_out * k_in].reshape(len(rows), k_out, k_in)
            self._inputs[number] = self._inputs[number].to(block)
            self._outputs[number] = self._outputs[number].to(block)
            rotated = self._outputs[number].T @ (block @ self._inputs[number])
            total = self.sums[str(number)].to(rows.device)
            self.sums[str(number)] = total.add_((rotated.double() ** 2).sum(dim=0))
