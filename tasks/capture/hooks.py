"""Per-example projected gradients of linear layers, caught around any `loss.backward()`.

A forward hook keeps the projected activations (tokens x k, not tokens x d); a hook on the layer's output turns the
output gradient into the projected gradient when back-propagation passes. Weights may be frozen: then the first
tracked output is where back-propagation ends.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["CaptureError", "GradientCapture", "Projection"]


class CaptureError(RuntimeError):
    """A layer was used in a way whose per-example gradient cannot be told apart."""


@runtime_checkable
class Projection(Protocol):
    """What capture needs of a layer's projection (see tasks.projection.logra)."""

    @property
    def name(self) -> str: ...

    @property
    def n_columns(self) -> int: ...

    def projected_activation(self, activation: Tensor) -> Tensor: ...

    def projected_gradient(self, output_gradient: Tensor, projected_activation: Tensor) -> Tensor: ...


class GradientCapture:
    """Context manager that fills one row of projected gradients an example.

    The loss that is back-propagated must be a SUM over examples, so that each row is its own example's gradient. A
    layer called several times contributes the sum of its calls. Gradients add up until `rows()` takes them.

    Args:
        modules: the layers, linear in their first input.
        projections: one a layer, in the same order; they own consecutive columns of a row.
        dtype: of the rows.

    Raises:
        CaptureError: in the forward pass, if a layer's input mixes examples (routed tokens of a mixture of experts).
    """

    def __init__(
        self, modules: Sequence[nn.Module], projections: Sequence[Projection], dtype: torch.dtype = torch.float32
    ) -> None:
        self._layers = list(zip(modules, projections, strict=True))
        sizes = [projection.n_columns for projection in projections]
        self._columns = [slice(sum(sizes[:number]), sum(sizes[: number + 1])) for number in range(len(sizes))]
        self._n_columns = sum(sizes)
        self._dtype = dtype
        self._rows: Tensor | None = None
        self._shape: tuple[int, int] | None = None  # examples and tokens of the last input that shows both
        self._reached: set[int] = set()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "GradientCapture":
        if self._handles:
            raise CaptureError("this capture is already active; leave it before entering again")
        for number, (module, _) in enumerate(self._layers):
            self._handles.append(module.register_forward_hook(self._forward_hook(number)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._rows, self._shape = None, None

    def _forward_hook(self, number: int) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        projection = self._layers[number][1]

        def keep(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if not torch.is_grad_enabled():
                return
            activation = self._by_example(inputs[0].detach(), projection.name)
            if not output.requires_grad:
                output.requires_grad_(True)
            output.register_hook(partial(self._add, number, projection.projected_activation(activation)))

        return keep

    def _by_example(self, activation: Tensor, name: str) -> Tensor:
        """(n_examples, n_tokens, n_inputs), also of an input with one row an example or one row a token."""
        if activation.dim() == 3:
            self._shape = (activation.shape[0], activation.shape[1])
            return activation
        if activation.dim() == 2:
            n_examples, n_tokens = self._shape or (len(activation), 1)
            if len(activation) == n_examples:
                return activation[:, None]
            if len(activation) == n_examples * n_tokens:
                return activation.view(n_examples, n_tokens, activation.shape[-1])
        raise CaptureError(
            f"layer {name} reads a tensor of shape {tuple(activation.shape)}, in which the examples cannot be told "
            "apart: exclude it with --model.exclude"
        )

    @torch.no_grad()
    def _add(self, number: int, projected_activation: Tensor, output_gradient: Tensor) -> None:
        by_example = output_gradient.reshape(*projected_activation.shape[:2], output_gradient.shape[-1])
        block = self._layers[number][1].projected_gradient(by_example, projected_activation)
        if self._rows is None:
            self._rows = torch.zeros(len(block), self._n_columns, dtype=self._dtype, device=block.device)
        target = self._rows[:, self._columns[number]]
        if number in self._reached:
            target.add_(block)
        else:
            target.copy_(block)
            self._reached.add(number)

    def rows(self) -> Tensor:
        """(n_examples, n_columns) gradients since the last call, which are then forgotten.

        Raises:
            CaptureError: nothing was back-propagated, or a layer had no part in the loss.
        """
        if self._rows is None:
            raise CaptureError("no gradient arrived: call loss.backward() inside the capture first")
        if len(self._reached) < len(self._layers):
            idle = next(number for number in range(len(self._layers)) if number not in self._reached)
            raise CaptureError(
                f"layer {self._layers[idle][1].name} has no part in the loss: exclude it with --model.exclude"
            )
        rows, self._rows, self._shape = self._rows, None, None
        self._reached.clear()
        return rows
