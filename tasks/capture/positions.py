"""Products of gradients with some directions in the projected space: of whole examples, or of one position by position.

A linear layer's gradient is a sum over positions of output gradient times input. Each term, projected and multiplied by
a direction, is that position's part of the product. So is influence told token by token in Grosse et al. 2023 (arXiv
2308.03296, section 5.3); a position's input may hold what earlier positions told it.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dataworth.tasks.capture.hooks import LayerCapture

__all__ = ["PositionCapture", "ProductCapture", "Products"]


@runtime_checkable
class Products(Protocol):
    """What this capture needs of a layer's projection (see dataworth.tasks.projection.logra)."""

    @property
    def name(self) -> str: ...

    @property
    def n_columns(self) -> int: ...

    def projected_activation(self, activation: Tensor) -> Tensor: ...

    def gradient_products(
        self, output_gradient: Tensor, projected_activation: Tensor, directions: Tensor
    ) -> Tensor: ...


class ProductCapture(LayerCapture):
    """Context manager that multiplies each example's gradient with directions, as it comes; no row is kept.

    Args:
        modules: the layers (see LayerCapture).
        projections: one a layer, in the same order; they own consecutive columns of a direction.
        directions: (m, n_columns).
        n_rows: examples of the one batch that is back-propagated.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module | tuple[nn.Module, ...]],
        projections: Sequence[Products],
        directions: Float[Tensor, "m c"],
        n_rows: int,
    ) -> None:
        super().__init__(modules, [projection.name for projection in projections])
        self._projections = list(projections)
        self._directions = directions.split([projection.n_columns for projection in projections], dim=1)
        self.products = directions.new_zeros(n_rows, len(directions), dtype=torch.float64)
        self.expect(n_rows)

    def _kept(self, number: int, activation: Tensor) -> Tensor:
        return self._projections[number].projected_activation(activation)

    def _arrived(self, number: int, kept: Tensor, output_gradient: Tensor) -> None:
        by_row = output_gradient.reshape(*kept.shape[:2], output_gradient.shape[-1])
        products = self._projections[number].gradient_products(by_row, kept, self._directions[number])
        self.products[self._rows_of(kept)] += products.double()

    def _rows_of(self, kept: Tensor) -> slice:
        return slice(len(kept))


class PositionCapture(ProductCapture):
    """The same of one example, a row a position, and a last one for layers that read other vectors than those.

    Poolers read one vector an example, routed experts some of them. Rows add up to the example's product.

    Args:
        modules, projections, directions: as of ProductCapture.
        n_positions: of the example.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module | tuple[nn.Module, ...]],
        projections: Sequence[Products],
        directions: Float[Tensor, "m c"],
        n_positions: int,
    ) -> None:
        super().__init__(modules, projections, directions, n_positions + 1)
        self._n_positions = n_positions
        self.expect(1)

    def _kept(self, number: int, activation: Tensor) -> Tensor:
        is_told = activation.shape[1] == self._n_positions
        return super()._kept(number, activation.transpose(0, 1) if is_told else activation)

    def _rows_of(self, kept: Tensor) -> slice:
        return slice(self._n_positions) if len(kept) == self._n_positions else slice(self._n_positions, None)
