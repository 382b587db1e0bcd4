"""LoGra: a layer's gradient projected on both sides while back-propagating.

g = B G A^T = sum over tokens of (B d_t) (A x_t)^T, so that the (n_outputs, n_inputs) gradient G never exists.
Source: Choe et al. 2024 (arXiv 2405.13954), equation 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dataworth.storage.layer_table import Layer
from dataworth.storage.layers import LayerStore
from dataworth.tasks.projection.sides import IdentitySide, Side, followed_by, side_matrices, side_rows, stored_side
from dataworth.tasks.projection.sketch import SparseSketch

__all__ = [
    "DIRECTIONS",
    "LayerProjection",
    "layer_table",
    "orthonormal_coordinates",
    "orthonormal_sides",
    "projected_weights",
    "projection_matrices",
    "stored_directions",
    "stored_projections",
]

# A matrix of a layer that is none of its projection's: what its gradients are multiplied with.
DIRECTIONS = "directions"
# Entries of gradients that are held at a time where products with them are asked for.
ENTRIES_AT_ONCE = 2**24


@dataclass(frozen=True)
class LayerProjection:
    """How the gradient of one layer is made small.

    Args:
        name: of the layer.
        n_inputs: dimensions of the layer's input, one more where it has a bias.
        n_outputs: dimensions of the layer's output.
        has_bias: the activation carries a trailing 1.
        input_side: from n_inputs to k_in dimensions.
        output_side: from n_outputs to k_out dimensions.
        sketch: of the k_out k_in entries, if there is one.
    """

    name: str
    n_inputs: int
    n_outputs: int
    has_bias: bool
    input_side: Side
    output_side: Side
    sketch: SparseSketch | None = None

    @property
    def k_in(self) -> int:
        return self.input_side.size

    @property
    def k_out(self) -> int:
        return self.output_side.size

    @property
    def n_columns(self) -> int:
        """Entries of the projected gradient."""
        return self.k_in * self.k_out if self.sketch is None else self.sketch.size

    def to(self, device: torch.device, dtype: torch.dtype) -> "LayerProjection":
        """The same projection on a device, in the model's data type."""
        return replace(
            self,
            input_side=self.input_side.to(device, dtype),
            output_side=self.output_side.to(device, dtype),
            sketch=None if self.sketch is None else self.sketch.to(device, dtype),
        )

    def rotated(self, outputs: Float[np.ndarray, "j k"], inputs: Float[np.ndarray, "l m"]) -> "LayerProjection":
        """The same, and then a matrix on each side: tokens are rotated sooner than the gradient they add up to.

        Raises:
            ValueError: the projection sketches both sides together.
        """
        if self.sketch is not None:
            raise ValueError("a sketch of both sides keeps no product of two spaces")
        return replace(
            self,
            output_side=followed_by(self.output_side, self.n_outputs, outputs),
            input_side=followed_by(self.input_side, self.n_inputs, inputs),
        )

    def projected_activation(self, activation: Float[Tensor, "n t i"]) -> Float[Tensor, "n t k"]:
        """A x for every token; x is the layer's input, to which the trailing 1 of a bias is added here."""
        return self.input_side.projected(activation, trailing_one=self.has_bias)

    def projected_output_gradient(self, output_gradient: Float[Tensor, "... o"]) -> Float[Tensor, "... k"]:
        """B d for every token."""
        return self.output_side.projected(output_gradient, trailing_one=False)

    def looked_up(self, ids: Int[Tensor, "n t"], dtype: torch.dtype) -> Float[Tensor, "n t k"]:
        """B d for every token of a table of rows, where d is a 1 at the token's number."""
        return self.output_side.looked_up(ids, dtype)

    def gradient(self, outputs: Float[Tensor, "n t j"], inputs: Float[Tensor, "n t k"]) -> Float[Tensor, "n c"]:
        """(n, n_columns): sum over tokens of (B d_t) (A x_t)^T of each example, one matrix product an example."""
        rows = torch.bmm(outputs.transpose(1, 2), inputs).flatten(1)
        return rows if self.sketch is None else self.sketch.sketched(rows)

    def gradient_products(
        self, outputs: Float[Tensor, "n t j"], inputs: Float[Tensor, "n t k"], directions: Float[Tensor, "m c"]
    ) -> Float[Tensor, "n m"]:
        """(n, m) products of projected gradients with directions; few gradients are held at a time."""
        outputs, inputs = outputs.to(directions.dtype), inputs.to(directions.dtype)
        if self.sketch is None and outputs.shape[1] == 1:  # of single positions: the products need no gradient
            matrices = directions.view(len(directions), self.k_out, self.k_in)
            return torch.stack([((outputs @ each) * inputs).sum(dim=(1, 2)) for each in matrices], dim=1)
        n_rows = max(1, ENTRIES_AT_ONCE // (self.k_out * self.k_in))
        parts = zip(outputs.split(n_rows), inputs.split(n_rows), strict=True)
        return torch.cat([self.gradient(*part).to(directions.dtype) @ directions.T for part in parts])


def projected_weights(projection: LayerProjection, weights: Float[Tensor, "o i"]) -> Float[np.ndarray, " c"]:
    """P vec(W): a matrix of the layer's shape, bias as its last column, projected like a gradient; float64."""
    exact = projection.to(torch.device("cpu"), torch.float64)
    half = exact.input_side.projected(weights.double(), trailing_one=False)
    both = exact.output_side.projected(half.T.contiguous(), trailing_one=False).T.reshape(1, -1)
    return (both if exact.sketch is None else exact.sketch.sketched(both))[0].numpy()


def orthonormal_sides(projection: LayerProjection) -> tuple[Float[Tensor, "k o"], Float[Tensor, "r i"]]:
    """Orthonormal rows that span what the output and the input side keep: (B B^T)^-1/2 B and (A A^T)^-1/2 A, float64.

    Raises:
        ValueError: the projection sketches both sides together, and keeps no product of two spaces.
    """
    if projection.sketch is not None:
        raise ValueError("a sketch of both sides keeps no product of two spaces")
    sides = ((projection.output_side, projection.n_outputs), (projection.input_side, projection.n_inputs))
    output, inputs = (_root_of_gram(side_rows(side, size)) @ side_rows(side, size) for side, size in sides)
    return output, inputs


def orthonormal_coordinates(projection: LayerProjection) -> Float[np.ndarray, "c c"] | None:
    """R = (P P^T)^-1/2, which turns projected gradients into coordinates of an orthonormal basis; None: they are.

    In those, a step's length is the distance of the parameters.
    """
    roots = [
        torch.eye(size, dtype=torch.float64) if isinstance(side, IdentitySide) else _root_of_gram(side_rows(side, size))
        for side, size in (
            (projection.output_side, projection.n_outputs),
            (projection.input_side, projection.n_inputs),
        )
    ]
    if all(torch.allclose(root, torch.eye(len(root), dtype=root.dtype), atol=1e-5) for root in roots):
        return None
    return torch.kron(*roots).numpy()


def _root_of_gram(rows: Tensor) -> Tensor:
    """(M M^T)^-1/2 of a matrix with independent rows."""
    eigenvalues, vectors = torch.linalg.eigh(rows @ rows.T)
    return (vectors / eigenvalues.sqrt()) @ vectors.T


def layer_table(projections: Sequence[LayerProjection]) -> list[Layer]:
    """The layer table of a store."""
    table = []
    first_column = 0
    for projection in projections:
        table.append(
            Layer(
                projection.name,
                first_column,
                projection.n_columns,
                projection.n_inputs,
                projection.n_outputs,
                projection.has_bias,
                projection.k_in,
                projection.k_out,
            )
        )
        first_column += projection.n_columns
    return table


def projection_matrices(projection: LayerProjection) -> dict[str, np.ndarray]:
    """What has to be stored of a projection, read back by `stored_projections`."""
    matrices = side_matrices(projection.input_side, "input") | side_matrices(projection.output_side, "output")
    if projection.sketch is not None:
        matrices |= {
            "sketch_column": projection.sketch.column.numpy(),
            "sketch_sign": projection.sketch.sign.numpy(),
        }
    return matrices


def stored_projections(bases: LayerStore) -> list[LayerProjection]:
    """The projections of a store of bases, in the order of its layer table."""
    projections = []
    for layer in bases.layers:
        names = [name for name in bases.names(layer.name) if name != DIRECTIONS]
        matrices = {key: bases.matrix(layer.name, key) for key in names}
        sketch = None
        if "sketch_column" in matrices:
            sketch = SparseSketch(
                torch.from_numpy(matrices["sketch_column"]),
                torch.from_numpy(matrices["sketch_sign"]),
                layer.n_columns,
            )
        projections.append(
            LayerProjection(
                layer.name,
                layer.n_inputs,
                layer.n_outputs,
                layer.has_bias,
                stored_side(matrices, "input", layer.n_inputs),
                stored_side(matrices, "output", layer.n_outputs),
                sketch,
            )
        )
    return projections


def stored_directions(bases: LayerStore, device: torch.device) -> list[Float[Tensor, "m c"]] | None:
    """What gradients of each layer are multiplied with, of a store of bases that has such; None of others."""
    if not bases.layers or DIRECTIONS not in bases.names(bases.layers[0].name):
        return None
    return [torch.from_numpy(bases.matrix(layer.name, DIRECTIONS)).to(device) for layer in bases.layers]
