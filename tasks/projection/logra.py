"""LoGra: a layer's gradient projected on both sides while back-propagating.

g = B G A^T = sum over tokens of (B d_t) (A x_t)^T, so that the (n_outputs, n_inputs) gradient G never exists.
Source: Choe et al. 2024 (arXiv 2405.13954), equation 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear, pad

from storage.layers import LayerStore

__all__ = ["LayerProjection", "layer_table", "stored_projections"]


@dataclass(frozen=True)
class LayerProjection:
    """The two bases of a layer; None stands for the identity.

    Args:
        name: of the layer.
        n_inputs: dimensions of the layer's input, one more where it has a bias.
        n_outputs: dimensions of the layer's output.
        has_bias: the activation carries a trailing 1.
        input_basis: (k_in, n_inputs) or None.
        output_basis: (k_out, n_outputs) or None.
    """

    name: str
    n_inputs: int
    n_outputs: int
    has_bias: bool
    input_basis: Tensor | None = None
    output_basis: Tensor | None = None

    @property
    def k_in(self) -> int:
        return self.n_inputs if self.input_basis is None else self.input_basis.shape[0]

    @property
    def k_out(self) -> int:
        return self.n_outputs if self.output_basis is None else self.output_basis.shape[0]

    @property
    def n_columns(self) -> int:
        """Entries of the projected gradient."""
        return self.k_in * self.k_out

    def to(self, device: torch.device, dtype: torch.dtype) -> "LayerProjection":
        """The same projection with its bases on a device, in the model's data type."""
        return LayerProjection(
            self.name,
            self.n_inputs,
            self.n_outputs,
            self.has_bias,
            None if self.input_basis is None else self.input_basis.to(device, dtype),
            None if self.output_basis is None else self.output_basis.to(device, dtype),
        )

    def projected_activation(self, activation: Float[Tensor, "n t i"]) -> Float[Tensor, "n t k"]:
        """A x for every token; x is the layer's input, to which the trailing 1 of a bias is added here."""
        if self.input_basis is None:
            return pad(activation, (0, 1), value=1.0) if self.has_bias else activation
        if self.has_bias:
            return linear(activation, self.input_basis[:, :-1], self.input_basis[:, -1])
        return linear(activation, self.input_basis)

    def projected_output_gradient(self, output_gradient: Float[Tensor, "n t o"]) -> Float[Tensor, "n t k"]:
        """B d for every token."""
        return output_gradient if self.output_basis is None else linear(output_gradient, self.output_basis)

    def projected_gradient(
        self, output_gradient: Float[Tensor, "n t o"], projected_activation: Float[Tensor, "n t k"]
    ) -> Float[Tensor, "n c"]:
        """(n, k_out k_in): sum over tokens of (B d_t) (A x_t)^T for each example, one matrix product an example."""
        projected = self.projected_output_gradient(output_gradient)
        return torch.bmm(projected.transpose(1, 2), projected_activation).flatten(1)


def layer_table(projections: Sequence[LayerProjection]) -> list[dict[str, Any]]:
    """The layer table of a store: names, shapes and the columns each layer owns in a row."""
    table = []
    first_column = 0
    for projection in projections:
        table.append(
            {
                "name": projection.name,
                "n_inputs": projection.n_inputs,
                "n_outputs": projection.n_outputs,
                "has_bias": projection.has_bias,
                "k_in": projection.k_in,
                "k_out": projection.k_out,
                "first_column": first_column,
                "n_columns": projection.n_columns,
            }
        )
        first_column += projection.n_columns
    return table


def stored_projections(bases: LayerStore) -> list[LayerProjection]:
    """The projections of a store of bases, in the order of its layer table."""
    projections = []
    for layer in bases.layers:
        name = layer["name"]
        matrices = {key: torch.from_numpy(bases.matrix(name, key)) for key in bases.names(name)}
        projections.append(LayerProjection(name, layer["n_inputs"], layer["n_outputs"], layer["has_bias"], **matrices))
    return projections
