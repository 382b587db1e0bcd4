"""What methods need of a model, and any torch module as one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dataworth.tasks.capture.gradients import GradientCapture, Projection
from dataworth.tasks.model.halves import Halves
from dataworth.tasks.model.layers import TrackedLayer, tracked_layers
from dataworth.tasks.model.reading import Reading

__all__ = ["Model", "PlainModel", "gradient_capture"]


@runtime_checkable
class Model(Protocol):
    """A frozen model in evaluation mode: a checkpoint (see LoadedModel), or a torch module."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def layers(self) -> Sequence[TrackedLayer]: ...

    @property
    def halves(self) -> Halves: ...

    @property
    def n_classes(self) -> int | None:
        """Classes of a classifier; None for a language model."""

    @property
    def device(self) -> torch.device: ...

    @property
    def reading(self) -> Reading: ...


def gradient_capture(
    model: Model, projections: Sequence[Projection], dtype: torch.dtype = torch.float32
) -> GradientCapture:
    """The capture of a model's tracked layers, not yet entered.

    Args:
        model: whose layers are captured.
        projections: one a layer, in the same order.
        dtype: of the rows.
    """
    modules = [layer.uses for layer in model.layers]
    return GradientCapture(modules, projections, dtype, may_idle=model.reading.may_idle)


@dataclass(frozen=True)
class PlainModel:
    """A classifier that is a module from (n, …) inputs to (n, n_classes) logits; every linear layer is tracked.

    Args:
        model: its parameters are frozen here.
        n_classes: of the logits.
    """

    model: nn.Module
    n_classes: int | None

    def __post_init__(self) -> None:
        self.model.requires_grad_(False).eval()

    @cached_property
    def layers(self) -> Sequence[TrackedLayer]:
        return tuple(tracked_layers(self.model))

    @property
    def halves(self) -> Halves:
        def body(inputs: Tensor, mask: Tensor) -> Tensor:
            logits: Tensor = self.model(inputs)
            return logits

        return Halves(body, nn.Identity())

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def reading(self) -> Reading:
        return Reading()
