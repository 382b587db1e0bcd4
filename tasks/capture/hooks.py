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

__all__ = ["CaptureError", "LayerCapture"]


class CaptureError(RuntimeError):
    """A layer was used in a way whose per-example gradient cannot be told apart."""


class LayerCapture(ABC):
    """Context manager that hooks layers, linear in their first input.

    Args:
        modules: one a layer; a tuple where several modules share one weight, whose gradient is the sum of theirs.
        names: of the layers.

    Raises:
        CaptureError: in the forward pass, if a layer's input mixes examples (routed tokens of a mixture of experts).
    """

    def __init__(self, modules: Sequence[nn.Module | tuple[nn.Module, ...]], names: Sequence[str]) -> None:
        self._modules = [module if isinstance(module, tuple) else (module,) for module in modules]
        self._names = list(names)
        self._shape: tuple[int, int] | None = None  # examples and tokens of the last input that shows both
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        if self._handles:
            raise CaptureError("this capture is already active; leave it before entering again")
        for number, shared in enumerate(self._modules):
            for module in shared:
                self._handles.append(module.register_forward_hook(self._forward_hook(number)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._shape = None

    @abstractmethod
    def _kept(self, number: int, activation: Tensor) -> Tensor:
        """What to keep of a layer's input (n_examples, n_tokens, n_inputs) until its output gradient arrives."""

    @abstractmethod
    def _arrived(self, number: int, kept: Tensor, output_gradient: Tensor) -> None:
        """The layer's output gradient is there."""

    def _forward_hook(self, number: int) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def keep(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if not torch.is_grad_enabled():
                return
            with torch.no_grad():
                kept = self._kept(number, self._by_example(inputs[0].detach(), self._names[number]))
            if not output.requires_grad:
                output.requires_grad_(True)
            output.register_hook(partial(self._meet, number, kept))

        # A compiled model runs this as it is, between its compiled parts.
        undisturbed: Callable[[nn.Module, tuple[Any, ...], Tensor], None] = torch.compiler.disable(keep)
        return undisturbed

    @torch.no_grad()
    def _meet(self, number: int, kept: Tensor, output_gradient: Tensor) -> None:
        self._arrived(number, kept, output_gradient)

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
