"""KFAC's covariances against activations and output gradients read off the graph, example by example."""

import pytest
import torch

from dataworth.tasks.capture.factors import FactorCapture
from dataworth.tasks.capture.losses import data_labels
from dataworth.tasks.capture.passes import backward_passes
from dataworth.tasks.model.halves import halves
from dataworth.tasks.model.layers import tracked_layers
from dataworth.tasks.projection.bases import projections_of
from dataworth.tasks.projection.config import ProjectionConfig
from tests.reference.dense import dense_factors

LENGTHS = (7, 2, 11)


def examples_and_batch():
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(2, 250, (length,), generator=generator) for length in LENGTHS]
    input_ids, mask = torch.zeros(3, 11, dtype=torch.long), torch.zeros(3, 11, dtype=torch.long)
    labels = torch.full_like(input_ids, -100)
    for number, ids in enumerate(rows):
        input_ids[number, : len(ids)], mask[number, : len(ids)], labels[number, : len(ids)] = ids, 1, ids
    return [(ids, ids) for ids in rows], (input_ids, mask, labels)


@pytest.mark.parametrize("name", ["llama", "llama with biases", "gpt2", "opt"])
@pytest.mark.parametrize("rank", [None, 4])
def test_covariances_equal_the_means_over_tokens(model_in_float64, name, rank):
    model = model_in_float64(name)
    layers = tracked_layers(model)
    config = ProjectionConfig(kind="identity") if rank is None else ProjectionConfig(rank=rank)
    projections = [entry.to(torch.device("cpu"), torch.float64) for entry in projections_of(layers, config)]
    examples, (input_ids, mask, labels) = examples_and_batch()
    with FactorCapture([layer.modules for layer in layers], projections) as capture:
        for batch in (slice(0, 2), slice(2, 3)):
            capture.tokens = mask[batch]
            for _ in backward_passes(*halves(model), input_ids[batch], mask[batch], labels[batch], data_labels):
                pass
    dense = dense_factors(model, [layer.module for layer in layers], examples)
    for projection, found, expected in zip(projections, capture.covariances(), dense, strict=True):
        sides = (projection.input_side, projection.output_side)
        for side, covariance, whole in zip(sides, found, expected, strict=True):
            whole = torch.from_numpy(whole)
            if rank is not None:
                whole = side.basis @ whole @ side.basis.T
            assert torch.linalg.matrix_norm(covariance - whole) <= 1e-9 * torch.linalg.matrix_norm(whole)


def test_covariances_of_no_token_are_refused(model_in_float64):
    layers = tracked_layers(model_in_float64("llama"))
    capture = FactorCapture([layer.modules for layer in layers], projections_of(layers, ProjectionConfig(rank=2)))
    with pytest.raises(ValueError, match="no token"):
        capture.covariances()
