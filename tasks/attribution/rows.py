"""Gradient rows of examples, batch by batch, in memory."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dataworth.tasks.capture.gradients import GradientCapture
from dataworth.tasks.capture.passes import gradient_rows
from dataworth.tasks.corpus.batches import batches_by_length
from dataworth.tasks.corpus.examples import Examples
from dataworth.tasks.model.plain import Model, gradient_capture
from dataworth.tasks.projection.bases import projections_of
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.logra import LayerProjection

__all__ = [
    "all_rows",
    "example_rows",
    "fixed_projections",
    "row_products",
    "whole_space",
]

BATCH_TOKENS = 4096


def whole_space(model: Model) -> list[LayerProjection]:
    """Projections that keep every coordinate of every tracked layer."""
    return projections_of(model.layers, ProjectionConfig(kind="identity"))


def fixed_projections(model: Model, projection: ProjectionConfig) -> list[LayerProjection]:
    """Projections that need no covariances.

    Raises:
        ValueError: pca bases are asked for.
    """
    if projection.kind == "pca":
        raise ValueError("pca bases need covariances, which this method does not fit: take random or identity")
    return projections_of(model.layers, projection)


def example_rows(
    model: Model, projections: Sequence[LayerProjection], examples: Examples
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """(numbers, rows (b, c), losses (b,)) of every batch: the gradient of each example's own loss, and the loss.

    Args:
        model: whose layers are projected.
        projections: one a layer, in the same order.
        examples: longest come first; `numbers` says which they are.
    """
    with _capture(model, projections) as capture:
        for numbers in batches_by_length(examples.lengths, BATCH_TOKENS, model.reading.batching, capture.most_rows):
            batch = examples.batch(numbers, model.device, model.reading.pad_token)
            yield numbers, *gradient_rows(*model.halves, capture, *batch)


def all_rows(model: Model, projections: Sequence[LayerProjection], examples: Examples) -> tuple[Tensor, np.ndarray]:
    """(n, c) rows of all examples in their order, and their (n,) losses in nats; n c floats of memory."""
    blocks: list[Tensor] = []
    order, losses = [], []
    for numbers, rows, loss in example_rows(model, projections, examples):
        blocks.append(rows)
        order.append(numbers)
        losses.append(loss.double().cpu().numpy())
    back = np.argsort(np.concatenate(order))
    rows = torch.cat(blocks)[torch.from_numpy(back).to(blocks[0].device)]
    return rows, np.concatenate(losses)[back]


def row_products(
    vectors: Float[np.ndarray, "q c"], model: Model, projections: Sequence[LayerProjection], examples: Examples
) -> Float[np.ndarray, "q n"]:
    """v . g(z) of every vector and example, float64; one pass over the examples, whose rows are not kept."""
    products = np.empty((len(vectors), examples.n_examples))
    for numbers, rows, _ in example_rows(model, projections, examples):
        products[:, numbers] = vectors @ rows.double().cpu().numpy().T
    return products


def _capture(model: Model, projections: Sequence[LayerProjection]) -> GradientCapture:
    weight = next(model.model.parameters())
    moved = [projection.to(model.device, weight.dtype) for projection in projections]
    # Oracles are held against methods in float64.
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return gradient_capture(model, moved, dtype)
