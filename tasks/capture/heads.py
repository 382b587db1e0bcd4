"""Layers that read some of a batch's tokens only, and whose those are: heads, experts.

The head of a language model reads the states that predict something, in pieces. Each piece is taken forward and, for
every draw of its labels, backward at once (see capture/losses.py), before the losses' own backward pass asks for any of
it. What a capture projected of both sides waits here until then.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["HeadTargets", "Rows"]


class Rows:
    """Vectors of some tokens of a batch, one a row.

    Args:
        examples, places: (p,) of each: the example, and its place among the example's tokens.
        n_examples: of the batch.
    """

    def __init__(self, examples: Int[Tensor, " p"], places: Int[Tensor, " p"], n_examples: int) -> None:
        self.examples, self.places, self.n_examples = examples, places, n_examples

    @cached_property
    def _slots(self) -> tuple[Tensor, int]:
        """(p,) of each row among its example's, and the most that an example has."""
        counts = torch.bincount(self.examples, minlength=self.n_examples)
        first = counts.cumsum(0) - counts
        order = torch.argsort(self.examples, stable=True)
        slots = torch.empty_like(order)
        slots[order] = torch.arange(len(order), device=order.device) - first[self.examples[order]]
        return slots, int(counts.max())

    def by_example(self, vectors: Float[Tensor, "p k"]) -> Float[Tensor, "n t k"]:
        """The vectors of each example, filled up with zeros."""
        slots, most = self._slots
        filled = vectors.new_zeros(self.n_examples, most, vectors.shape[1])
        filled[self.examples, slots] = vectors
        return filled


class HeadTargets(Rows):
    """The targets of one batch, and both sides of the layers that its head is made of.

    Args:
        examples, places, n_examples: of the targets, in their order.
        arrived: gets, for a layer, its inputs (p, k), its outputs (p, k) and these targets.
    """

    def __init__(
        self,
        examples: Int[Tensor, " p"],
        places: Int[Tensor, " p"],
        n_examples: int,
        arrived: Callable[[int, Tensor, Tensor, Rows], None],
    ) -> None:
        super().__init__(examples, places, n_examples)
        self._arrived = arrived
        self._draw = 0
        self._met: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        self.is_asked = False

    def __enter__(self) -> None:
        """The head is called on the next piece."""
        self.is_asked = True

    def __exit__(self, *_: object) -> None:
        self.is_asked = False

    def draw(self, number: int) -> None:
        """The next backward pass of a piece is that of this draw of its labels."""
        self._draw = number

    def add(self, layer: int, inputs: Float[Tensor, "q k"], outputs: Float[Tensor, "q j"]) -> None:
        """Both sides of a layer, of the piece and draw at hand; pieces come in the targets' order."""
        self._met.setdefault((self._draw, layer), []).append((inputs, outputs))

    @torch.no_grad()
    def arrive(self, draw: int, outer: Float[Tensor, " p"]) -> None:
        """The losses of a draw are back-propagated, each with this gradient of its own."""
        for number, layer in [key for key in self._met if key[0] == draw]:
            inputs, outputs = (torch.cat(parts) for parts in zip(*self._met.pop((number, layer)), strict=True))
            self._arrived(layer, inputs, outputs * outer[:, None].to(outputs.dtype), self)
