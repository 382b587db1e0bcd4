"""What passes over examples add up to become a curvature: memory independent of the number of examples.

The rows added carry the weights of their labels: sqrt(weight) g, so that the sum over an example's labels of the outer
products is its expectation. Examples are counted apart from rows. Products are taken in the rows' precision, sums in
float64 on their device.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dataworth.storage.layer_table import Layer
from dataworth.tasks.capture.factors import FactorCapture
from dataworth.tasks.curvature.dense import Dense
from dataworth.tasks.curvature.kronecker import Covariances, Kronecker
from dataworth.tasks.curvature.lowrank import LowRank, gaussian_matrix

__all__ = [
    "MAX_COLUMNS",
    "Accumulator",
    "CovarianceSums",
    "EigenvalueSums",
    "FisherSums",
    "GroupedFisherSums",
    "Rows",
]

# Beyond this a dense block costs more to store and factorise than it tells: 4096 columns are 128 MB in float64.
MAX_COLUMNS = 4096
Result = TypeVar("Result", covariant=True)


@runtime_checkable
class Rows(Protocol):
    """What hands out gradients (see dataworth.tasks.capture.gradients)."""

    def rows(self) -> Tensor: ...


class Accumulator(Protocol[Result]):
    """A sum over examples, of all layers.

    `what`: is summed, in a word; `state`: what a killed run goes on from, and several processes add up.
    """

    what: str
    state: dict[str, Tensor]

    def add(self, examples: np.ndarray) -> None:
        """What a backward pass over the examples of these numbers left in the capture."""

    def result(self, n_examples: int) -> Result:
        """What the sums over so many examples amount to."""


class CovarianceSums:
    """KFAC's two covariances of each layer, which the capture itself adds up."""

    what = "covariances"

    def __init__(self, capture: FactorCapture) -> None:
        self._capture = capture

    @property
    def state(self) -> dict[str, Tensor]:
        return self._capture.sums

    @state.setter
    def state(self, state: dict[str, Tensor]) -> None:
        self._capture.sums = state

    def add(self, examples: np.ndarray) -> None:
        """Nothing is left to add."""

    def result(self, n_examples: int) -> list[Covariances]:
        """Means over tokens, which are counted with the sums."""
        pairs = self._capture.covariances()
        return [Covariances(inputs.cpu().numpy(), outputs.cpu().numpy()) for inputs, outputs in pairs]


class FisherSums:
    """sum over examples of g g^T for each layer; of a wide one g (g^T W) and g^2.

    With labels sampled from the model it estimates the true Fisher, with the data's the empirical one (Martens & Grosse
    2015).

    Args:
        capture: of the rows.
        layers: the layer table.
        low_rank: columns of W.
        seed: of W; the same for the same seed and number of the layer.
        max_columns: of a layer that is not wide.
    """

    what = "fisher"

    def __init__(
        self, capture: Rows, layers: Sequence[Layer], low_rank: int, seed: int, max_columns: int = MAX_COLUMNS
    ) -> None:
        self._capture, self._layers, self._low_rank, self._seed = capture, list(layers), low_rank, seed
        self._matrices: dict[int, Tensor] = {}
        self.state: dict[str, Tensor] = {}
        for number, layer in enumerate(layers):
            if layer.n_columns > max_columns:
                matrix = self._matrices[number] = torch.from_numpy(self._matrix(number))
                self.state[f"sketch {number}"] = torch.zeros(matrix.shape, dtype=torch.float64)
                self.state[f"diagonal {number}"] = torch.zeros(len(matrix), dtype=torch.float64)
            else:
                self.state[str(number)] = torch.zeros(layer.n_columns, layer.n_columns, dtype=torch.float64)

    def add(self, examples: np.ndarray) -> None:
        rows = self._capture.rows()
        for number, layer in enumerate(self._layers):
            block = rows[:, layer.columns]
            if number in self._matrices:
                matrix = self._matrices[number] = self._matrices[number].to(block)
                _add(self.state, f"sketch {number}", torch.mm(block.T, torch.mm(block, matrix)))
                _add(self.state, f"diagonal {number}", (block.double() ** 2).sum(dim=0))
            else:
                _add(self.state, str(number), torch.mm(block.T, block))

    def result(self, n_examples: int) -> list[Dense | LowRank]:
        means = {name: total.cpu().numpy() / n_examples for name, total in self.state.items()}
        return [
            LowRank.of_sketch(means[f"sketch {number}"], self._matrix(number), means[f"diagonal {number}"])
            if number in self._matrices
            else Dense(means[str(number)])
            for number in range(len(self._layers))
        ]

    def _matrix(self, number: int) -> np.ndarray:
        """W of a layer, made again where it is needed in float64."""
        return gaussian_matrix(self._layers[number].n_columns, self._low_rank, self._seed, number)


class GroupedFisherSums:
    """sum over examples of g g^T for each layer and group of examples, dense: G times the memory of `FisherSums`.

    Products are taken in float64, so that how examples are grouped does not change what the groups add up to.

    Args:
        capture: of the rows.
        layers: the layer table.
        groups: (n,) number of the group of every example there is.
        n_groups: G.
    """

    what = "fisher by group"

    def __init__(self, capture: Rows, layers: Sequence[Layer], groups: Int[np.ndarray, " n"], n_groups: int) -> None:
        self._capture, self._layers, self._groups = capture, list(layers), groups
        self.state = {
            str(number): torch.zeros(n_groups, layer.n_columns, layer.n_columns, dtype=torch.float64)
            for number, layer in enumerate(layers)
        }

    def add(self, examples: Int[np.ndarray, " m"]) -> None:
        rows, groups = self._capture.rows(), self._groups[examples]
        for number, layer in enumerate(self._layers):
            total = self.state[str(number)] = self.state[str(number)].to(rows.device)
            for group in np.unique(groups):
                block = rows[torch.from_numpy(groups == group).to(rows.device), layer.columns].double()
                total[group] += block.T @ block

    def result(self, n_examples: int) -> list[Float[np.ndarray, "g k k"]]:
        """The part of each group in the mean."""
        return [self.state[str(number)].cpu().numpy() / n_examples for number in range(len(self._layers))]


class EigenvalueSums:
    """sum over examples of (Q_S^T g Q_A)^2 for each layer, which makes KFAC's eigenvalues those of EK-FAC.

    Source: George et al. 2018 (arXiv 1806.03884), equation 11; for language models Grosse et al. 2023
    (arXiv 2308.03296), equation 20.

    Args:
        capture: of the rows, in the factors' eigenvectors.
        layers: the layer table.
        factors: KFAC of each layer, whose eigenvectors are kept.
    """

    what = "eigenvalues"

    def __init__(self, capture: Rows, layers: Sequence[Layer], factors: Sequence[Kronecker]) -> None:
        self._capture, self._layers, self._factors = capture, list(layers), list(factors)
        self.state = {
            str(number): torch.zeros(layer.k_out, layer.k_in, dtype=torch.float64)
            for number, layer in enumerate(layers)
        }

    def add(self, examples: np.ndarray) -> None:
        rows = self._capture.rows()
        for number, layer in enumerate(self._layers):
            block = rows[:, layer.columns].reshape(len(rows), layer.k_out, layer.k_in)
            _add(self.state, str(number), (block.double() ** 2).sum(dim=0))

    def result(self, n_examples: int) -> list[Kronecker]:
        return [
            Kronecker(
                self.state[str(number)].cpu().numpy() / n_examples,
                factor.output_eigenvectors,
                factor.input_eigenvectors,
            )
            for number, factor in enumerate(self._factors)
        ]


def _add(state: dict[str, Tensor], name: str, part: Tensor) -> None:
    """To a float64 sum, which moves to the part's device."""
    state[name] = state[name].to(part.device).add_(part)
