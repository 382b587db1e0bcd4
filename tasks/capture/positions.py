"""Products of gradients with some directions in the projected space: of whole examples, or of one position by position.

A linear layer's gradient is a sum over positions of output gradient times input. Each term, projected and multiplied by
a direction, is that position's part of the product. So is influence told token by token in Grosse et al. 2023 (arXiv
2308.03296, section 5.3); a position's input may hold what earlier positions told it.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dataworth.tasks.capture.heads import Rows
from dataworth.tasks.capture.hooks import LayerCapture, SideName, Sides, Use

__all__ = ["PositionCapture", "ProductCapture", "Products"]


@runtime_checkable
class Products(Sides, Protocol):
    """What this capture needs of a layer's projection (see dataworth.tasks.projection.logra)."""

    @property
    def n_columns(self) -> int: ...

    def gradient_products(self, outputs: Tensor, inputs: Tensor, directions: Tensor) -> Tensor: ...


class ProductCapture(LayerCapture):
    """Context manager that multiplies each example's gradient with directions, as it comes; no row is kept.

    Args:
        modules: the layers (see LayerCapture).
        projections: one a layer, in the same order.
        directions: (m, n_columns) of each layer, in the same order.
        n_rows: examples of the batch that is back-propagated next; `expect` says it of further ones.
    """

    def __init__(
        self,
        modules: Sequence[Use | tuple[Use, ...]],
        projections: Sequence[Products],
        directions: Sequence[Float[Tensor, "m c"]],
        n_rows: int,
    ) -> None:
        super().__init__(modules, projections)
        self._projections, self._directions = list(projections), list(directions)
        self.expect(n_rows)

    def expect(self, n_examples: int) -> None:
        super().expect(n_examples)
        self.products = self._nothing(n_examples)

    def _nothing(self, n_rows: int) -> Tensor:
        first = self._directions[0]
        precise = torch.float32 if first.device.type == "mps" else torch.float64  # which that device lacks
        return first.new_zeros(n_rows, len(first), dtype=precise)

    def _arrived(self, number: int, side: SideName, kept: Tensor, projected: Tensor) -> None:
        self._add(number, side, kept, projected, slice(len(kept)))

    def _add(self, number: int, side: SideName, kept: Tensor, projected: Tensor, rows: slice | Tensor) -> None:
        outputs, inputs = (projected, kept) if side == "output" else (kept, projected)
        found = self._projections[number].gradient_products(outputs, inputs, self._directions[number])
        if isinstance(rows, slice):
            self.products[rows] += found.to(self.products.dtype)
        else:  # a token may come to several experts, but to each one once
            self.products.index_add_(0, rows, found.to(self.products.dtype))


class PositionCapture(ProductCapture):
    """The same of one example, a row a position, and a last one for layers that read other vectors than those.

    Poolers read one vector an example, routed experts some of them. Rows add up to the example's product.

    Args:
        modules, projections, directions: as of ProductCapture.
        n_positions: of the example.
    """

    def __init__(
        self,
        modules: Sequence[Use | tuple[Use, ...]],
        projections: Sequence[Products],
        directions: Sequence[Float[Tensor, "m c"]],
        n_positions: int,
    ) -> None:
        super().__init__(modules, projections, directions, 1)
        self._n_positions = n_positions
        self.products = self._nothing(n_positions + 1)

    def _arrived(self, number: int, side: SideName, kept: Tensor, projected: Tensor) -> None:
        if kept.shape[1] == self._n_positions:
            kept, projected = kept.transpose(0, 1), projected.transpose(0, 1)
            self._add(number, side, kept, projected, slice(self._n_positions))
        else:
            self._add(number, side, kept, projected, slice(self._n_positions, None))

    def _of_rows(self, number: int, inputs: Tensor, outputs: Tensor, rows: Rows) -> None:
        self._add(number, "output", inputs[:, None], outputs[:, None], rows.places)
