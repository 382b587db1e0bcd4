"""The two covariances of a layer that KFAC is made of, summed while back-propagating.

A = mean over tokens of x x^T, S = mean over tokens of d d^T, with the loss a sum over tokens.
Source: Martens & Grosse 2015 (arXiv 1503.05671); for sequence models Grosse et al. 2023 (arXiv 2308.03296).
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dataworth.tasks.capture.heads import Rows
from dataworth.tasks.capture.hooks import LayerCapture, SideName, Sides, Use

__all__ = ["FactorCapture", "SizedSides"]


@runtime_checkable
class SizedSides(Sides, Protocol):
    """What capture of factors needs of a layer's projection (see dataworth.tasks.projection.logra)."""

    @property
    def k_in(self) -> int: ...

    @property
    def k_out(self) -> int: ...


class FactorCapture(LayerCapture):
    """Running sums over tokens of x x^T and d d^T of each layer, both in the projected space, in float64.

    Padding is no token: `tokens` is set to each batch's attention mask before its forward pass. A backward pass under
    each of m label draws must carry a loss scaled by sqrt(1 / m), so that S is their mean. Of a layer that reads some
    of the tokens only, an expert or the head, A is the mean over those and S over all tokens, so that their product
    says how rarely it is used. Of a table that is also the head, A is the mean over the tokens of both.

    Args:
        modules: the layers (see LayerCapture).
        projections: one a layer; identity sides give the whole covariances.
    """

    def __init__(self, modules: Sequence[Use | tuple[Use, ...]], projections: Sequence[SizedSides]) -> None:
        super().__init__(modules, projections)
        self._tokens: Tensor | None = None
        n_layers = len(projections)
        self.sums: dict[str, Tensor] = {
            "n_tokens": torch.zeros(n_layers, dtype=torch.float64),
            "n_batch_tokens": torch.zeros(1, dtype=torch.float64),
            "reads_some": torch.zeros(n_layers, dtype=torch.float64),
        }
        for number, entry in enumerate(projections):
            self.sums[f"input {number}"] = torch.zeros(entry.k_in, entry.k_in, dtype=torch.float64)
            self.sums[f"output {number}"] = torch.zeros(entry.k_out, entry.k_out, dtype=torch.float64)

    @property
    def tokens(self) -> Tensor | None:
        """(n, t) attention mask of the batch."""
        return self._tokens

    @tokens.setter
    def tokens(self, mask: Tensor) -> None:
        self._tokens = mask
        self.sums["n_batch_tokens"] += float(mask.sum())

    def _kept(self, number: int, side: SideName, projected: Tensor, rows: Rows | None = None) -> Tensor:
        n_examples, n_tokens = projected.shape[:2]
        flat = projected.flatten(0, 1)
        counted: float = n_examples * n_tokens
        if self.tokens is not None:
            is_token = None
            if rows is not None:
                self.sums["reads_some"][number] = 1.0
                is_token = self.tokens[rows.examples, rows.places]
            elif self.tokens.shape == (n_examples, n_tokens):
                is_token = self.tokens.reshape(-1)
            if is_token is not None:
                flat, counted = flat * is_token[:, None].to(flat.dtype), float(is_token.sum())
            elif number in self._vectors:  # heads of every token, in an order of their own
                share = float(self.tokens.float().mean())
                flat, counted = flat * share**0.5, counted * share
        self._add(number, side, flat)
        self.sums["n_tokens"][number] += counted
        return projected.new_empty(0)

    def _arrived(self, number: int, side: SideName, kept: Tensor, projected: Tensor) -> None:
        self._add(number, side, projected.flatten(0, 1))

    def _of_rows(self, number: int, inputs: Tensor, outputs: Tensor, rows: Rows) -> None:
        self._add(number, "output", outputs)

    def _add(self, number: int, side: SideName, vectors: Tensor) -> None:
        name = f"{side} {number}"
        self.sums[name] = _added(self.sums[name], vectors)

    def covariances(self, sums: dict[str, Tensor] | None = None) -> list[tuple[Tensor, Tensor]]:
        """(A, S) of each layer, float64: means over tokens of the sums, its own or those of several captures added up.

        Raises:
            ValueError: no token was seen.
        """
        total = self.sums if sums is None else sums
        counts = total["n_tokens"]
        if not bool((counts > 0).any()):
            raise ValueError("the covariances of no token are not defined")
        counts = counts.clamp(min=1)  # an expert that no token was sent to: zeros
        of_outputs = torch.where(total["reads_some"] > 0, total["n_batch_tokens"], counts)
        return [
            (total[f"input {number}"] / float(one), total[f"output {number}"] / float(other))
            for number, (one, other) in enumerate(zip(counts, of_outputs, strict=True))
        ]


def _added(total: Tensor, vectors: Tensor) -> Tensor:
    """total + sum over rows v of v v^T; products in float32 at least, the sum in float64 on the vectors' device."""
    precise = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    return total.to(precise.device).add_(torch.mm(precise.T, precise))
