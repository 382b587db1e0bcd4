"""Parameters of other forms than a linear layer's: vectors that scale or shift, and tables of rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Lookup", "Lookups", "Routed", "Vector", "is_affine", "looked_up", "scale_of", "slope"]

# Of what a module gives, how far it may be from what its form says: some compute in float32 whatever their type; half
# precision rounds by 2^-8.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
TOLERANCE_OF_HALF = 0.02


@dataclass(frozen=True)
class Vector:
    """A vector of a module's parameters in which the module's output is affine, entry by entry.

    Args:
        module: such as a norm.
        parameter: its name there.
    """

    module: nn.Module
    parameter: str


def slope(vector: Vector, run: Callable[[], Tensor]) -> Tensor:
    """What an entry of the output gains where an entry of the vector grows by 1: in the shape of the output.

    Args:
        vector: of the module.
        run: the module, on the input at hand.
    """
    own = vector.module.get_parameter(vector.parameter)
    return _at(vector, torch.ones_like(own), run) - _at(vector, torch.zeros_like(own), run)


def scale_of(vector: Vector, run: Callable[[], Tensor]) -> Tensor | None:
    """The same, or None where it is 1 everywhere but for rounding: of what is added as it is, as most biases are."""
    found = slope(vector, run)
    return None if bool(((found - 1).abs() <= TOLERANCE.get(found.dtype, TOLERANCE_OF_HALF)).all()) else found


def is_affine(vector: Vector, run: Callable[[], Tensor]) -> bool:
    """Whether the output is a + v b, entry by entry, in the vector v; parameters as in `slope`."""
    own = vector.module.get_parameter(vector.parameter)
    other = torch.linspace(-1, 2, len(own), dtype=own.dtype, device=own.device)
    nothing, found = _at(vector, torch.zeros_like(own), run), _at(vector, other, run)
    if not isinstance(found, Tensor) or found.shape[-1:] != own.shape:
        return False
    # Beside what the vector does: where that is small beside the rest of the output, rounding hides it: it is refused.
    difference, does = (nothing + other * slope(vector, run) - found).abs().max(), (found - nothing).abs().max()
    return bool(difference <= TOLERANCE.get(found.dtype, TOLERANCE_OF_HALF) * does)


def _at(vector: Vector, values: Tensor, run: Callable[[], Tensor]) -> Tensor:
    """What the module gives where the vector has other values."""
    parameters, name = vector.module._parameters, vector.parameter
    own = parameters[name]
    # What a module remembers of its passes, as a batch norm does, is as it was.
    buffers = {key: None if each is None else each.clone() for key, each in vector.module._buffers.items()}
    try:
        parameters[name] = nn.Parameter(values, requires_grad=False)
        return run()
    finally:
        parameters[name] = own
        vector.module._buffers.update(buffers)


class Routed(nn.Module):
    """A linear layer that is given some of a batch's tokens, and knows which.

    tokens: (r,) numbers among all tokens of the batch, example by example, of what it is given now.
    n_tokens: of the batch.
    """

    tokens: Tensor | None = None
    n_tokens: int = 0

    def of_tokens(self, vectors: Tensor, tokens: Tensor, n_tokens: int) -> Tensor:
        """Its output for the vectors of these tokens."""
        self.tokens, self.n_tokens = tokens, n_tokens
        try:
            output: Tensor = self(vectors)
            return output
        finally:
            self.tokens = None


class Lookup(NamedTuple):
    """What a table was asked.

    Args:
        ids: of the rows, in the shape of its output without the last axis.
        counted: whether they get a gradient, in the output's data type: padding may get none.
        scale: that the rows were multiplied by, and output gradients are on the way back; None: 1.
    """

    ids: Tensor
    counted: Tensor
    scale: Tensor | None


@torch.no_grad()
def looked_up(table: nn.Embedding, given: Tensor, output: Tensor, run: Callable[[], object]) -> Lookup | None:
    """The rows of a table that its output is made of; None where it is made of something else.

    Args:
        table: of rows.
        given: the numbers of the rows, or what a table of a kind of its own makes them of, as tables of positions do.
        output: what it gave.
        run: the table, on the input at hand.
    """
    ids, is_plain = given, type(table) is nn.Embedding
    if not is_plain:
        with Lookups() as lookups:
            run()
        own = [ids for rows, ids in lookups.seen if rows.data_ptr() == table.weight.data_ptr()]
        if len(own) != 1:
            return None
        (ids,) = own
    if output.shape != (*ids.shape, table.embedding_dim):
        return None
    counted = torch.ones(ids.shape, dtype=output.dtype, device=output.device)
    if table.padding_idx is not None:
        counted = (ids != table.padding_idx).to(output.dtype)
    if is_plain:
        return Lookup(ids, counted, None)
    rows = embedding(ids, table.weight)
    largest = rows.abs().argmax()
    scale = output.flatten()[largest] / rows.flatten()[largest]
    tolerance = TOLERANCE.get(output.dtype, TOLERANCE_OF_HALF)
    is_scaled = bool(((output - rows * scale).abs() <= tolerance * output.abs().max()).all())
    return Lookup(ids, counted, scale) if is_scaled else None


class Lookups(TorchDispatchMode):
    """Remembers every table in which rows were looked up, and their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if call is torch.ops.aten.embedding.default and isinstance(args[1], Tensor):
            self.seen.append((args[0], args[1]))
        return call(*args, **(kwargs or {}))
