"""The tail patch: one step on the best documents of a query, and how far its loss falls. Nothing is trained again.

Source: Chang et al. 2024 (arXiv 2410.17413), section 4.2, who step on one document at the model's own rate. Here the
step is on several at once and as long as a given share of the weights, so that methods that find long gradients gain
nothing by it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dataworth.tasks.attribution.rows import all_rows, whole_space
from dataworth.tasks.corpus.examples import Examples, Part
from dataworth.tasks.corpus.measured_losses import measured_losses
from dataworth.tasks.model.displacement import base_displacements, displaced
from dataworth.tasks.model.plain import Model

__all__ = ["best_documents", "patched_falls"]


def best_documents(scores: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " k"]:
    """Numbers of the best documents, the best first; ties go to the first."""
    return np.argsort(-scores, kind="stable")[:count]


def patched_falls(
    model: Model,
    examples: Examples,
    queries: Examples,
    chosen: Sequence[tuple[int, np.ndarray]],
    length: float,
) -> Float[np.ndarray, " k"]:
    """Loss of a query at the model less its loss after one step along the documents' summed gradient, nats.

    Args:
        model: where the step begins; only tracked layers move, and they are as they were afterwards.
        examples: of the documents.
        queries: asked before and after.
        chosen: a query's number and its documents' numbers, for each step.
        length: of a step, in lengths of the tracked weights.
    """
    reach = length * _weight_length(model)
    before = measured_losses(model, queries)
    falls = np.empty(len(chosen))
    for place, (query, documents) in enumerate(chosen):
        numbers = np.flatnonzero(np.isin(examples.documents, documents))
        gradient = all_rows(model, whole_space(model), Part(examples, numbers))[0].double().sum(dim=0)
        norm = float(gradient.norm())
        step = -gradient * (reach / norm) if norm > 0 else gradient
        with displaced(model.layers, _by_layer(model, step)):
            falls[place] = before[query] - measured_losses(model, Part(queries, np.array([query])))[0]
    return falls


def _weight_length(model: Model) -> float:
    """Of the tracked weights and biases together."""
    nothing = {
        name: torch.zeros_like(parameter) for layer in model.layers for name, parameter in layer.parameters.items()
    }
    return float(np.sqrt(sum(float((away**2).sum()) for away in base_displacements(model.layers, nothing))))


def _by_layer(model: Model, step: Tensor) -> list[Tensor]:
    sizes = [layer.n_outputs * layer.n_inputs for layer in model.layers]
    parts = step.split(sizes)
    return [part.view(layer.n_outputs, layer.n_inputs) for part, layer in zip(parts, model.layers, strict=True)]
