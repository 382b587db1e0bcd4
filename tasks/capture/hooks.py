"""What capture of any kind does with a layer: keep something of its input, meet its output gradient.

A forward hook sees the activation; a hook on the layer's output sees the output gradient when back-propagation passes.
Weights may be frozen: then the first tracked output is where back-propagation ends. A model under `torch.compile` must
be compiled while hooked: its first call inside the capture does that, `torch.compiler.reset()` forgets an earlier one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dataworth.storage.spelling import setting

__all__ = ["CaptureError", "LayerCapture"]

ForwardHook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Tensor | None]


class CaptureError(RuntimeError):
    """A layer was used in a way whose per-example gradient cannot be told apart."""


class LayerCapture(ABC):
    """Context manager that hooks layers, linear in their first input.

    Args:
        modules: one a layer; a tuple where several modules share one weight, whose gradient is the sum of theirs.
        names: of the layers.

    Raises:
        CaptureError: in the forward pass, if the examples of a layer's input cannot be told apart (routed tokens of a
            mixture of experts, one table for the whole batch). Of a batch of one, everything is that example's.
    """

    def __init__(self, modules: Sequence[nn.Module | tuple[nn.Module, ...]], names: Sequence[str]) -> None:
        self._modules = [module if isinstance(module, tuple) else (module,) for module in modules]
        self._names = list(names)
        self._n_examples: int | None = None
        self._other_axis: str | None = None
        self._shape: tuple[int, int] | None = None  # examples and tokens of the last input that shows both
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        if self._handles:
            raise CaptureError("this capture is already active; leave it before entering again")
        for number, shared in enumerate(self._modules):
            for module in shared:
                self._handles.append(module.register_forward_hook(self._forward_hook(number), with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._n_examples = self._shape = None

    def expect(self, n_examples: int) -> None:
        """Say how many examples the next batch has; where nobody does, the first axis of a layer's input is theirs."""
        self._n_examples, self._shape = n_examples, None

    def doubt(self, module: str) -> None:
        """Say that a module of the model takes its examples along the second axis: equal axes cannot be told apart."""
        self._other_axis = module

    @abstractmethod
    def _kept(self, number: int, activation: Tensor) -> Tensor:
        """What to keep of a layer's input (n_examples, n_tokens, n_inputs) until its output gradient arrives."""

    @abstractmethod
    def _arrived(self, number: int, kept: Tensor, output_gradient: Tensor) -> None:
        """The layer's output gradient is there."""

    def _forward_hook(self, number: int) -> ForwardHook:
        def keep(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            activation = inputs[0] if inputs else next(iter(named.values()), None)
            if not isinstance(activation, Tensor) or not isinstance(output, Tensor):
                raise CaptureError(
                    f"layer {self._names[number]} does not turn one tensor into one: exclude it with "
                    f"{setting('model.exclude')}"
                )
            with torch.no_grad():
                kept = self._kept(number, self._by_example(activation.detach(), self._names[number]))
            begins = not output.requires_grad
            if begins:
                # A copy, since models change outputs in place, which autograd forbids for what it begins with.
                output = output.requires_grad_(True).clone()
            _at_gradient(output, partial(self._meet, number, kept))
            return output if begins else None

        # A compiled model runs this as it is, between its compiled parts.
        undisturbed: ForwardHook = torch.compiler.disable(keep)
        return undisturbed

    @torch.no_grad()
    def _meet(self, number: int, kept: Tensor, output_gradient: Tensor) -> None:
        self._arrived(number, kept, output_gradient)

    def _by_example(self, activation: Tensor, name: str) -> Tensor:
        """(n_examples, n_tokens, n_inputs): the example comes first, all between it and the inputs are its tokens."""
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
            if shape[0] == n_examples * n_tokens:
                return activation.view(n_examples, n_tokens, width)
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
