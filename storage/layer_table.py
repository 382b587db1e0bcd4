"""The layer table: which columns of a row of gradients are a layer's, and between which spaces it maps."""

import re
from dataclasses import dataclass

from dataworth.storage.manifest import MANIFEST, Store

__all__ = ["Layer", "kind_of", "layers_of"]


def kind_of(name: str) -> str:
    """The same for layers of one kind, whose names differ in numbers alone, such as experts and blocks."""
    return re.sub(r"\d+", "*", name)


@dataclass(frozen=True)
class Layer:
    """One layer of a table. Sizes are 0 where a store keeps matrices that are of no layer's gradients.

    Args:
        name: unique in its table.
        first_column, n_columns: its part of a row.
        n_inputs, n_outputs: of the layer, a bias counting as one input more.
        has_bias: it has one.
        k_in, k_out: of its projection's two sides.
    """

    name: str
    first_column: int = 0
    n_columns: int = 0
    n_inputs: int = 0
    n_outputs: int = 0
    has_bias: bool = False
    k_in: int = 0
    k_out: int = 0

    @property
    def columns(self) -> slice:
        """Its part of a row."""
        return slice(self.first_column, self.first_column + self.n_columns)

    @property
    def is_product(self) -> bool:
        """Whether its columns are k_out rows of k_in, rather than a sketch of both sides together."""
        return self.n_columns == self.k_out * self.k_in


def layers_of(store: Store) -> list[Layer]:
    """The layer table in the manifest of a store.

    Raises:
        StoreDamagedError: it is none.
    """
    try:
        return [Layer(**entry) for entry in store.entry("layers")]
    except TypeError:
        raise store.files.damaged(MANIFEST, "has no layer table") from None
