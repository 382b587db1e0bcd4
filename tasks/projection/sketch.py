"""The sparse Johnson-Lindenstrauss sketch of a layer's gradient after both of its sides were masked.

Every entry is added, with a random sign, to one of m columns: E[S x . S y] = x . y at one addition an entry.
Source: Kane & Nelson 2014 (sparsity 1, the count sketch); FactGraSS: Hu et al. 2025 (arXiv 2505.18976), section 3.2.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["SparseSketch"]


@dataclass(frozen=True)
class SparseSketch:
    """A sketch from n entries to m columns.

    Args:
        column: (n,) int64, the column each entry is added to.
        sign: (n,) +1 or -1.
        size: m.
    """

    column: Tensor
    sign: Tensor
    size: int

    def sketched(self, rows: Float[Tensor, "b n"]) -> Float[Tensor, "b m"]:
        """S x for each row x."""
        columns = rows.new_zeros(len(rows), self.size)
        return columns.index_add_(1, self.column, rows * self.sign)

    def to(self, device: torch.device, dtype: torch.dtype) -> "SparseSketch":
        """The same sketch elsewhere."""
        return SparseSketch(self.column.to(device), self.sign.to(device, dtype), self.size)
