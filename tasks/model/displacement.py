"""The model at other parameters: its tracked layers' weights moved by given amounts, and back."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.model.layers import TrackedLayer

__all__ = ["base_displacements", "displaced"]

PARTS = ("weight", "bias")


def _parameters(layer: TrackedLayer) -> tuple[Tensor, Tensor | None]:
    weight = getattr(layer.module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or len(layer.modules) != 1:
        raise InputError(f"layer {layer.name}: quantised and shared weights cannot be moved yet; exclude it")
    return weight, layer.module.bias if layer.has_bias else None  # type: ignore[return-value]  # a bias is a tensor


def _augmented(layer: TrackedLayer, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(n_outputs, n_inputs): the weight as y = W x, the bias as its last column."""
    matrix = weight.T if isinstance(layer.module, Conv1D) else weight
    return matrix if bias is None else torch.cat([matrix, bias[:, None]], dim=1)


@contextmanager
def displaced(layers: Sequence[TrackedLayer], amounts: Sequence[Tensor]) -> Iterator[None]:
    """The layers' weights plus (n_outputs, n_inputs) amounts each, bias last; as they were when the block ends."""
    kept = [[tensor.clone() for tensor in _parameters(layer) if tensor is not None] for layer in layers]
    try:
        with torch.no_grad():
            for layer, amount in zip(layers, amounts, strict=True):
                weight, bias = _parameters(layer)
                moved = amount.to(weight)
                if bias is not None:
                    bias.add_(moved[:, -1])
                    moved = moved[:, :-1]
                weight.add_(moved.T if isinstance(layer.module, Conv1D) else moved)
        yield
    finally:
        with torch.no_grad():
            for layer, before in zip(layers, kept, strict=True):
                for tensor, old in zip((t for t in _parameters(layer) if t is not None), before, strict=True):
                    tensor.copy_(old)


def base_displacements(layers: Sequence[TrackedLayer], base: Mapping[str, Tensor]) -> list[Tensor]:
    """theta_0 - theta* of each layer, (n_outputs, n_inputs) float64 on the CPU, bias last.

    Args:
        layers: of the trained model.
        base: parameters of the model that training began from, by name.
    """
    displacements = []
    for layer in layers:
        now = [None if tensor is None else tensor.detach().cpu().double() for tensor in _parameters(layer)]
        start = [None if now[n] is None else base[f"{layer.name}.{part}"].double() for n, part in enumerate(PARTS)]
        if any(one is not None and one.shape != two.shape for one, two in zip(now, start, strict=True)):  # type: ignore[union-attr]
            raise InputError(f"{setting('model.base')}: layer {layer.name} has another shape there")
        displacements.append(_augmented(layer, start[0], start[1]) - _augmented(layer, now[0], now[1]))  # type: ignore[arg-type]
    return displacements
