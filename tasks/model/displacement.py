"""The model at other parameters: its tracked layers' weights moved by given amounts, and back."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.model.layers import TrackedLayer

__all__ = ["base_displacements", "displaced"]


def _parameters(layer: TrackedLayer) -> dict[str, Tensor]:
    if not layer.is_plain:
        raise InputError(f"layer {layer.name}: quantised weights cannot be moved yet; exclude it")
    return layer.parameters


@contextmanager
def displaced(layers: Sequence[TrackedLayer], amounts: Sequence[Tensor]) -> Iterator[None]:
    """The layers' weights plus (n_outputs, n_inputs) amounts each, bias last; as they were when the block ends."""
    kept = [[tensor.clone() for tensor in _parameters(layer).values()] for layer in layers]
    try:
        with torch.no_grad():
            for layer, amount in zip(layers, amounts, strict=True):
                for tensor, moved in zip(_parameters(layer).values(), layer.tensors(amount), strict=True):
                    tensor.add_(moved.to(tensor))
        yield
    finally:
        with torch.no_grad():
            for layer, before in zip(layers, kept, strict=True):
                for tensor, old in zip(_parameters(layer).values(), before, strict=True):
                    tensor.copy_(old)


def base_displacements(layers: Sequence[TrackedLayer], base: Mapping[str, Tensor]) -> list[Tensor]:
    """theta_0 - theta* of each layer, (n_outputs, n_inputs) float64 on the CPU, bias last.

    Args:
        layers: of the trained model.
        base: parameters of the model that training began from, by name.
    """
    displacements = []
    for layer in layers:
        parameters = _parameters(layer)
        now = [tensor.detach().cpu().double() for tensor in parameters.values()]
        start = [base[name].double() for name in parameters]
        if any(one.shape != two.shape for one, two in zip(now, start, strict=True)):
            raise InputError(f"{setting('model.base')}: layer {layer.name} has another shape there")
        displacements.append(layer.matrix(start) - layer.matrix(now))
    return displacements
