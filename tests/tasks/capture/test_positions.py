"""Products of gradients with directions, example by example and position by position, on every architecture."""

import pytest
import torch

from dataworth.tasks.capture.gradients import GradientCapture
from dataworth.tasks.capture.passes import backward_losses, gradient_rows
from dataworth.tasks.capture.positions import PositionCapture, ProductCapture
from dataworth.tasks.model.halves import halves
from dataworth.tasks.model.layers import tracked_layers
from dataworth.tasks.projection.bases import layer_projection
from dataworth.tasks.projection.config import ProjectionConfig
from tests.reference.checkpoints import ARCHITECTURES, CLASSIFIERS

# Whose classifying head reads one vector an example.
POOLED = ("bert classifier",)
LENGTH, RANK, DIRECTIONS = 9, 3, 4


def setting(model, vocabulary=250):
    """Layers' modules, projections, directions, and one example."""
    layers = tracked_layers(model)
    config = ProjectionConfig(rank=RANK)
    projections = [
        layer_projection(layer.name, layer.n_inputs, layer.n_outputs, layer.has_bias, config).to(
            torch.device("cpu"), torch.float64
        )
        for layer in layers
    ]
    generator = torch.Generator().manual_seed(5)
    n_columns = sum(each.n_columns for each in projections)
    directions = torch.randn(DIRECTIONS, n_columns, generator=generator, dtype=torch.float64)
    ids = torch.randint(2, vocabulary, (1, LENGTH), generator=generator)
    return [layer.modules for layer in layers], projections, directions, ids


def by_layer(directions, projections):
    return directions.split([each.n_columns for each in projections], dim=1)


@pytest.mark.parametrize("name", [*ARCHITECTURES, *CLASSIFIERS])
def test_positions_add_up_to_the_example(model_in_float64, name):
    model = model_in_float64(name)
    modules, projections, directions, ids = setting(model)
    labels = torch.tensor([1]) if name in CLASSIFIERS else ids
    batch = (ids, torch.ones_like(ids), labels)
    with GradientCapture(modules, projections, torch.float64, may_idle=True) as capture:
        rows, _ = gradient_rows(*halves(model), capture, *batch)
    expected = (rows @ directions.T)[0]
    with PositionCapture(modules, projections, by_layer(directions, projections), LENGTH) as capture:
        backward_losses(*halves(model), *batch)
        by_position = capture.products
    assert by_position.shape == (LENGTH + 1, DIRECTIONS)
    assert bool((by_position[-1] != 0).any()) == (name in POOLED)
    torch.testing.assert_close(by_position.sum(dim=0), expected, rtol=1e-9, atol=1e-12)
    assert (by_position.abs().sum(dim=1) > 0).sum() >= 2  # and no single one has it all
    if name not in CLASSIFIERS:
        with ProductCapture(modules, projections, by_layer(directions, projections), 1) as capture:
            backward_losses(*halves(model), *batch)
            torch.testing.assert_close(capture.products[0], expected, rtol=1e-9, atol=1e-12)


def test_each_target_by_itself_adds_up_too(model_in_float64):
    model = model_in_float64("llama")
    modules, projections, directions, ids = setting(model)
    copies = ids.repeat(LENGTH - 1, 1)
    labels = torch.full_like(copies, -100)
    labels[torch.arange(LENGTH - 1), torch.arange(1, LENGTH)] = ids[0, 1:]
    batch = (copies, torch.ones_like(copies), labels)
    with ProductCapture(modules, projections, by_layer(directions, projections), LENGTH - 1) as capture:
        backward_losses(*halves(model), *batch)
        by_target = capture.products
    with GradientCapture(modules, projections, torch.float64) as capture:
        rows, _ = gradient_rows(*halves(model), capture, ids, torch.ones_like(ids), ids)
    # The model's norms are in float32 whatever its type, and sums of rounded parts differ from a rounded sum.
    torch.testing.assert_close(by_target.sum(dim=0), (rows @ directions.T)[0], rtol=1e-5, atol=1e-9)


def test_a_position_is_an_outer_product(model_in_float64):
    """Written out for one layer: what its output's gradient at a position times its input there is."""
    model = model_in_float64("llama")
    (layer,) = [each for each in tracked_layers(model) if each.name.endswith("layers.0.mlp.down_proj")]
    config = ProjectionConfig(kind="identity")
    whole = layer_projection(layer.name, layer.n_inputs, layer.n_outputs, layer.has_bias, config).to(
        torch.device("cpu"), torch.float64
    )
    ids = torch.arange(5, 5 + LENGTH)[None]
    direction = torch.randn(1, whole.n_columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with PositionCapture([layer.modules], [whole], [direction], LENGTH) as capture:
        backward_losses(*halves(model), ids, torch.ones_like(ids), ids)
        found = capture.products[:LENGTH, 0]
    seen = {}
    handle = layer.module.register_forward_hook(lambda _m, inputs, output: seen.update(x=inputs[0], y=output))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    logits = model(input_ids=ids).logits
    handle.remove()
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
    (gradient,) = torch.autograd.grad(loss, seen["y"])
    matrix = direction.view(layer.n_outputs, layer.n_inputs)
    expected = torch.einsum("to,oi,ti->t", gradient[0], matrix, seen["x"][0].detach())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_layer_that_reads_other_vectors_is_of_no_position():
    class Pooling(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

        def forward(self, x):
            return self.last(self.first(x).mean(dim=1))

    torch.manual_seed(0)
    model = Pooling().double().requires_grad_(False)
    modules, projections, directions, _ = setting(model)
    own = projections[0].n_columns
    example = torch.randn(1, 3, 4, dtype=torch.float64)
    with GradientCapture(modules, projections, torch.float64) as capture:
        capture.expect(1)
        (model(example) ** 2).sum().backward()
        row = capture.rows()[0]
    with PositionCapture(modules, projections, by_layer(directions, projections), 3) as capture:
        (model(example) ** 2).sum().backward()
    torch.testing.assert_close(capture.products[:3].sum(dim=0), directions[:, :own] @ row[:own])
    torch.testing.assert_close(capture.products[3], directions[:, own:] @ row[own:])
