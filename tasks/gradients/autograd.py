"""Gradients as a run computes them, beside those of autograd on the weights, one text at a time."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from dataworth.tasks.capture.passes import gradient_rows
from dataworth.tasks.corpus.batches import batches_by_length, padded_batch
from dataworth.tasks.model.layers import TrackedLayer
from dataworth.tasks.model.loading import LoadedModel
from dataworth.tasks.model.plain import gradient_capture
from dataworth.tasks.projection.bases import projections_of
from dataworth.tasks.projection.config import ProjectionConfig

__all__ = ["comparable_layers", "error_against_autograd"]

MAX_ENTRIES = 50_000_000  # of a layer's gradient, which is made whole here
BATCH_TOKENS = 4096


def comparable_layers(layers: Sequence[TrackedLayer], count: int) -> list[TrackedLayer]:
    """Some layers, spread over the model, whose weights autograd can differentiate and memory can hold.

    Args:
        layers: of the model.
        count: at most so many.
    """
    plain = [layer for layer in layers if layer.is_plain and layer.n_inputs * layer.n_outputs <= MAX_ENTRIES]
    places = np.unique(np.linspace(0, len(plain) - 1, min(count, len(plain))).round().astype(int))
    return [plain[place] for place in places]


def error_against_autograd(
    loaded: LoadedModel, layers: Sequence[TrackedLayer], rows: Sequence[np.ndarray], classes: Sequence[int]
) -> float:
    """Largest difference of a text's gradient, of the largest gradient: rows of a run against autograd.

    Args:
        loaded: the model.
        layers: some of its own.
        rows: token ids of each text.
        classes: of each text, of a classifier; else not looked at.
    """
    some = _Some(loaded, layers)
    projections = projections_of(layers, ProjectionConfig(kind="identity"))
    projections = [projection.to(loaded.device, loaded.model.dtype) for projection in projections]
    gradients = np.empty((len(rows), sum(projection.n_columns for projection in projections)), np.float32)
    lengths = np.array([len(row) for row in rows])
    with gradient_capture(some, projections) as capture:
        for batch in batches_by_length(lengths, BATCH_TOKENS, loaded.reading.batching):
            arrays = padded_batch([rows[n] for n in batch], np.zeros(len(batch), int), loaded.reading.pad_token)
            ids, mask, labels = (torch.from_numpy(array).to(loaded.device) for array in arrays)
            if loaded.labels is not None:
                labels = torch.tensor([classes[n] for n in batch], device=loaded.device)
            gradients[batch] = gradient_rows(*loaded.halves, capture, ids, mask, labels)[0].float().cpu().numpy()
    largest = difference = 0.0
    for number, row in enumerate(rows):
        right = _by_autograd(loaded, layers, torch.from_numpy(np.asarray(row, np.int64)), classes[number])
        largest = max(largest, float(np.abs(right).max()))
        difference = max(difference, float(np.abs(gradients[number] - right).max()))
    return difference / largest if np.isfinite(difference) and largest > 0 else float("inf")


class _Some:
    """A model of which some layers are tracked, as `gradient_capture` needs it."""

    def __init__(self, loaded: LoadedModel, layers: Sequence[TrackedLayer]) -> None:
        self.model, self.layers, self.halves = loaded.model, layers, loaded.halves
        self.n_classes, self.device, self.reading = loaded.n_classes, loaded.device, loaded.reading


def _by_autograd(
    loaded: LoadedModel, layers: Sequence[TrackedLayer], ids: Tensor, label: int
) -> Float[np.ndarray, " c"]:
    """The gradient of one text's loss, without padding, mask, hooks or a split of the model."""
    parameters = {id(p): p for layer in layers for p, _ in layer.leaves.values()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            logits = loaded.model(input_ids=ids[None].to(loaded.device)).logits[0]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            if loaded.labels is None:
                loss = cross_entropy(logits[:-1], ids[1:].to(loaded.device), reduction="sum")
            else:
                loss = -logits.log_softmax(-1)[label]
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    by_parameter = dict(zip(parameters, gradients, strict=True))
    return np.concatenate([_flat(layer, by_parameter) for layer in layers])


def _flat(layer: TrackedLayer, by_parameter: Mapping[int, Tensor | None]) -> np.ndarray:
    """(n_outputs * n_inputs,) of one layer, the bias as its last column; zeros where it has no part."""
    gradients = []
    for parameter, number in layer.leaves.values():
        gradient = by_parameter[id(parameter)]
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        gradients.append(gradient if number is None else gradient[number])
    flat: np.ndarray = layer.matrix(gradients).flatten().float().cpu().numpy()
    return flat
