"""What capture of any kind does with a layer: something of what it reads, then of its output gradient, side by side.

A layer's gradient is the sum over tokens of d x^T. Of a linear layer x is the input and d the output gradient. A table
of embeddings, (n_ids, width) as it stands, has as x the gradient of its output and as d a 1 at the token's number. A
vector that scales or shifts, as a norm's weight and bias do, has x = 1 and as d the output gradient, times what it
scales. A forward hook sees the one, a hook on the output the other, when back-propagation passes. Weights may be
frozen: then the first tracked output is where back-propagation ends. A model under `torch.compile` must be compiled
while hooked: its first call inside the capture does that, `torch.compiler.reset()` forgets an earlier one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dataworth.storage.spelling import setting
from dataworth.tasks.capture.heads import HeadTargets, Rows
from dataworth.tasks.capture.uses import Lookup, Routed, Vector, is_affine, looked_up, scale_of

__all__ = ["CaptureError", "LayerCapture", "SideName", "Sides", "Use"]

ForwardHook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Tensor | None]
SideName = Literal["input", "output"]
Use = nn.Module | Vector


class CaptureError(RuntimeError):
    """A layer was used in a way whose per-example gradient cannot be told apart."""


@runtime_checkable
class Sides(Protocol):
    """What every capture needs of a layer's projection (see dataworth.tasks.projection.logra)."""

    @property
    def name(self) -> str: ...

    def projected_activation(self, activation: Tensor) -> Tensor:
        """A x for every token."""

    def projected_output_gradient(self, output_gradient: Tensor) -> Tensor:
        """B d for every token."""

    def looked_up(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """B d for every token, where d is a 1 at its number."""


class _Waiting(NamedTuple):
    """Of one call of a layer, until its output gradient arrives.

    Args:
        number: of the layer.
        side: of what will arrive.
        kept: what the capture keeps of the other side.
        n_examples, n_tokens: of the call.
        factor: that the output gradient is multiplied by, if there is one.
    """

    number: int
    side: SideName
    kept: Tensor
    n_examples: int
    n_tokens: int
    factor: Tensor | None = None


class LayerCapture(ABC):
    """Context manager that hooks layers, linear in their parameters.

    Args:
        modules: one a layer; a tuple where several modules share one weight, whose gradient is the sum of theirs.
        projections: one a layer, in the same order.

    Raises:
        CaptureError: in the forward pass, if the examples of a layer's input cannot be told apart (routed tokens of a
            mixture of experts, one table for the whole batch). Of a batch of one, everything is that example's.
    """

    def __init__(self, modules: Sequence[Use | tuple[Use, ...]], projections: Sequence[Sides]) -> None:
        self._modules = [module if isinstance(module, tuple) else (module,) for module in modules]
        self._sides = list(projections)
        self._names = [projection.name for projection in projections]
        if len(self._names) != len(self._modules):
            raise ValueError(f"{len(self._modules)} layers need as many projections, got {len(self._names)}")
        self._vectors = {n for n, shared in enumerate(self._modules) if any(isinstance(use, Vector) for use in shared)}
        self._n_examples: int | None = None
        self._other_axis: str | None = None
        self._shape: tuple[int, int] | None = None  # examples and tokens of the last input that shows both
        self._handles: list[RemovableHandle] = []
        self._targets: HeadTargets | None = None
        self._is_asking = False
        self._known: set[Vector] = set()  # those that are what they seem

    def __enter__(self) -> Self:
        if self._handles:
            raise CaptureError("this capture is already active; leave it before entering again")
        for number, shared in enumerate(self._modules):
            for use in shared:
                module = use.module if isinstance(use, Vector) else use
                self._handles.append(module.register_forward_hook(self._forward_hook(number, use), with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._n_examples = self._shape = self._targets = None

    def expect(self, n_examples: int) -> None:
        """Say how many examples the next batch has; where nobody does, the first axis of a layer's input is theirs."""
        self._n_examples, self._shape = n_examples, None

    def doubt(self, module: str) -> None:
        """Say that a module of the model takes its examples along the second axis: equal axes cannot be told apart."""
        self._other_axis = module

    def of_targets(self, examples: Tensor, places: Tensor) -> HeadTargets:
        """Say whose states the head is given next, which reads none of the batch's others.

        Args:
            examples, places: (p,) of each state: the example, and its place among the example's tokens.
        """
        n_examples = self._n_examples or (int(examples.max()) + 1 if len(examples) else 1)
        self._targets = HeadTargets(examples, places, n_examples, self._of_rows)
        return self._targets

    def _kept(self, number: int, side: SideName, projected: Tensor, rows: Rows | None = None) -> Tensor:
        """What to keep of the side that a layer's forward pass shows, for the other.

        Args:
            number: of the layer.
            side: which one.
            projected: (n_examples, n_tokens, k), or (1, p, k).
            rows: of which tokens these p are; None: of all.
        """
        return projected

    @abstractmethod
    def _arrived(self, number: int, side: SideName, kept: Tensor, projected: Tensor) -> None:
        """The other side is there, (n_examples, n_tokens, k), on the way back."""

    def _of_rows(self, number: int, inputs: Tensor, outputs: Tensor, rows: Rows) -> None:
        """Both sides of a layer that read some tokens only, (p, k) each."""
        self._arrived(number, "output", rows.by_example(inputs), rows.by_example(outputs))

    def _forward_hook(self, number: int, use: Use) -> ForwardHook:
        def keep(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor | None:
            if not torch.is_grad_enabled() or self._is_asking:
                return None
            given = inputs[0] if inputs else next(iter(named.values()), None)
            if not isinstance(given, Tensor) or not isinstance(output, Tensor):
                raise CaptureError(
                    f"layer {self._names[number]} does not turn one tensor into one: exclude it with "
                    f"{setting('model.exclude')}"
                )
            again = partial(module, *inputs, **named)
            found = self._looked_up(number, use, given, output, again) if isinstance(use, nn.Embedding) else None
            told = output if found is None else self._for_each_example(found.ids, output)
            with torch.no_grad():
                if found is None:
                    meet = self._meets(number, use, given.detach(), told.detach(), again)
                else:
                    meet = self._meets_table(number, found, told.detach())
            begins = not told.requires_grad
            if begins:
                # A copy, since models change outputs in place, which autograd forbids for what it begins with.
                told = told.requires_grad_(True).clone()
            _at_gradient(told, meet)
            return None if told is output else told

        # A compiled model runs this as it is, between its compiled parts.
        undisturbed: ForwardHook = torch.compiler.disable(keep)
        return undisturbed

    def _meets(
        self, number: int, use: Use, given: Tensor, output: Tensor, again: Callable[[], Tensor]
    ) -> Callable[[Tensor], None]:
        """What to do with the output gradient of one call of a layer."""
        sides, name = self._sides[number], self._names[number]
        if self._targets is not None and self._targets.is_asked:
            read, factor = given, None
            if isinstance(use, Vector):
                read, factor = given.new_ones(len(given), 1), self._scale(use, name, again)
            inputs = sides.projected_activation(read[None])
            self._kept(number, "input", inputs, self._targets)
            return partial(self._meet_target, number, inputs[0], factor, self._targets)
        if isinstance(use, Vector):
            by_example = self._by_example(output, name, of_heads=True)
            n_examples, n_tokens = by_example.shape[:2]
            factor = self._scale(use, name, again)
            factor = None if factor is None else factor.reshape(by_example.shape)
            ones = sides.projected_activation(by_example.new_ones(n_examples, n_tokens, 1))
            kept = self._kept(number, "input", ones)
            return partial(self._meet, _Waiting(number, "output", kept, n_examples, n_tokens, factor))
        if isinstance(use, Routed):
            rows, inputs = self._rows_of(use, name), sides.projected_activation(given[None])
            self._kept(number, "input", inputs, rows)
            return partial(self._meet_rows, number, inputs[0], rows)
        inputs = self._by_example(given, name)
        kept = self._kept(number, "input", sides.projected_activation(inputs))
        return partial(self._meet, _Waiting(number, "output", kept, inputs.shape[0], inputs.shape[1]))

    def _meets_table(self, number: int, found: Lookup, output: Tensor) -> Callable[[Tensor], None]:
        """The same of a table of rows."""
        name = self._names[number]
        if self._n_examples != 1 and _is_relative(found.ids):
            raise CaptureError(
                f"layer {name} looks up the distances of {len(found.ids)} tokens once for all examples: "
                f"exclude it with {setting('model.exclude')}"
            )
        by_example = self._by_example(output, name)
        n_examples, n_tokens = by_example.shape[:2]
        ids, counted = (each.expand(output.shape[:-1]).reshape(n_examples, n_tokens) for each in found[:2])
        projected = self._sides[number].looked_up(ids, output.dtype) * counted[..., None]
        kept = self._kept(number, "output", projected)
        return partial(self._meet, _Waiting(number, "input", kept, n_examples, n_tokens, found.scale))

    def _looked_up(
        self, number: int, table: nn.Embedding, given: Tensor, output: Tensor, again: Callable[[], Tensor]
    ) -> Lookup:
        self._is_asking = True
        try:
            found = looked_up(table, given, output, again)
        finally:
            self._is_asking = False
        if found is None:
            raise CaptureError(
                f"layer {self._names[number]} is a table that gives something else than its rows: exclude it with "
                f"{setting('model.exclude')}"
            )
        return found

    def _scale(self, vector: Vector, name: str, again: Callable[[], Tensor]) -> Tensor | None:
        self._is_asking = True
        try:
            if vector not in self._known and not is_affine(vector, again):
                raise CaptureError(
                    f"layer {name} is a vector whose gradient cannot be told from the output of its "
                    f"module: exclude it with {setting('model.exclude')}"
                )
            self._known.add(vector)
            return scale_of(vector, again)
        finally:
            self._is_asking = False

    @torch.no_grad()
    def _meet(self, call: _Waiting, gradient: Tensor) -> None:
        by_example = gradient.reshape(call.n_examples, call.n_tokens, gradient.shape[-1])
        if call.factor is not None:
            by_example = by_example * call.factor
        sides = self._sides[call.number]
        is_output = call.side == "output"
        projected = (sides.projected_output_gradient if is_output else sides.projected_activation)(by_example)
        self._arrived(call.number, call.side, call.kept, projected)

    @torch.no_grad()
    def _meet_target(
        self, number: int, inputs: Tensor, factor: Tensor | None, targets: HeadTargets, gradient: Tensor
    ) -> None:
        gradient = gradient if factor is None else gradient * factor
        targets.add(number, inputs, self._sides[number].projected_output_gradient(gradient))

    @torch.no_grad()
    def _meet_rows(self, number: int, inputs: Tensor, rows: Rows, gradient: Tensor) -> None:
        self._of_rows(number, inputs, self._sides[number].projected_output_gradient(gradient), rows)

    def _rows_of(self, layer: Routed, name: str) -> Rows:
        """Whose tokens a layer was given."""
        n_examples = self._n_examples or (None if self._shape is None else self._shape[0])
        if layer.tokens is None or n_examples is None or layer.n_tokens % n_examples:
            raise CaptureError(
                f"layer {name} reads some tokens of which nobody says whose they are: exclude it with "
                f"{setting('model.exclude')}"
            )
        n_tokens = layer.n_tokens // n_examples
        return Rows(layer.tokens // n_tokens, layer.tokens % n_tokens, n_examples)

    def _for_each_example(self, ids: Tensor, output: Tensor) -> Tensor:
        """A table's output, once for every example where it is one for all: of positions."""
        n_examples = self._n_examples
        if n_examples in (None, 1):
            return output
        if ids.dim() == 2 and len(ids) == 1:
            return output.expand(n_examples, *output.shape[1:])
        if ids.dim() == 1 and len(ids) > 1 and bool((ids.diff() == 1).all()):
            return output.expand(n_examples, *output.shape)
        return output

    def _by_example(self, activation: Tensor, name: str, *, of_heads: bool = False) -> Tensor:
        """(n_examples, n_tokens, n_inputs): the example comes first, all between it and the inputs are its tokens.

        Args:
            activation: (…, n_inputs).
            name: of the layer.
            of_heads: it may have several vectors a token, as norms of single heads read.
        """
        shape, width = activation.shape, activation.shape[-1]
        if self._n_examples == 1:
            return activation.reshape(1, -1, width)
        if len(shape) > 2 and self._n_examples in (None, shape[0]):
            flat = activation.flatten(1, -2)
            self._refuse_doubt(flat.shape[0], flat.shape[1], name)
            self._shape = (flat.shape[0], flat.shape[1])
            return flat
        if len(shape) == 2:
            n_examples, n_tokens = self._shape or (self._n_examples or shape[0], 1)
            if shape[0] == n_examples:
                return activation[:, None]
            n_rows = n_examples * n_tokens
            if shape[0] == n_rows or (of_heads and shape[0] % n_rows == 0):
                return activation.view(n_examples, -1, width)
        raise CaptureError(
            f"layer {name} reads a tensor of shape {tuple(shape)}, in which the examples cannot be told "
            f"apart: exclude it with {setting('model.exclude')}"
        )

    def _refuse_doubt(self, n_first: int, n_second: int, name: str) -> None:
        if self._other_axis is not None and n_first == n_second > 1:
            raise CaptureError(
                f"layer {name} reads {n_first} x {n_second} vectors, of which either axis may be the examples', since "
                f"{self._other_axis} has batch_first=False: build it with batch_first=True, or give batches of fewer "
                "or more examples than tokens"
            )


def _is_relative(ids: Tensor) -> bool:
    """Numbers that tell places apart by their distance: (t, t), the same along every diagonal."""
    is_square = ids.dim() == 2 and len(ids) == ids.shape[1] > 1
    return is_square and bool((ids[1:, 1:] == ids[:-1, :-1]).all()) and bool((ids != ids[0, 0]).any())


def _at_gradient(output: Tensor, meet: Callable[[Tensor], None]) -> None:
    """Calls with the gradient of an output, as it is now, whatever changes it in place later.

    A layer's output of three axes is a view of a matrix. Where a view is changed in place, autograd forgets the hooks
    of the view, but goes on through what made the matrix.
    """
    base = output._base
    node = None if base is None or base.numel() != output.numel() else base.grad_fn
    if base is None or node is None:
        output.register_hook(meet)
        return
    place = base.output_nr

    def met(gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[place]
        if gradient is not None:
            meet(gradient)

    node.register_prehook(met)
