"""Embeddings, heads, tied pairs and vectors as layers: against autograd on the parameters, on every architecture."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dataworth.tasks.capture.factors import FactorCapture
from dataworth.tasks.capture.gradients import GradientCapture
from dataworth.tasks.capture.hooks import CaptureError
from dataworth.tasks.capture.losses import data_labels, drawn_labels
from dataworth.tasks.capture.passes import backward_losses, backward_passes, gradient_rows
from dataworth.tasks.capture.positions import PositionCapture, ProductCapture
from dataworth.tasks.model.halves import halves, whole
from dataworth.tasks.model.layers import coverage, tracked_layers
from dataworth.tasks.model.probes import plain_layers
from dataworth.tasks.projection.bases import layer_projection
from dataworth.tasks.projection.config import ProjectionConfig
from tests.reference.checkpoints import ARCHITECTURES, CLASSIFIERS
from tests.reference.dense import projected_dense

LENGTHS = (7, 2, 11)


def layers_of(model):
    ids = torch.arange(2, 9)[None]
    return plain_layers(lambda: model(input_ids=ids), tracked_layers(model, parameters="all"))


def projections(layers, dtype=torch.float64, **settings):
    config = ProjectionConfig(**(settings or {"kind": "identity"}))
    shapes = [(layer.name, layer.n_inputs, layer.n_outputs, layer.has_bias) for layer in layers]
    return [layer_projection(*shape, config).to(torch.device("cpu"), dtype) for shape in shapes]


def batch_of(vocabulary=250):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, vocabulary, (len(LENGTHS), max(LENGTHS)), generator=generator)
    ids[:, 4] = ids[:, 1]  # a token twice
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    ids, labels = ids * mask, ids.masked_fill(mask == 0, -100)
    labels[0, :3] = -100
    return ids, mask, labels


def by_autograd(model, layers, loss_of):
    """(n_outputs, n_inputs) of every layer."""
    parameters = {id(p): p for layer in layers for p in layer.parameters.values()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        found = torch.autograd.grad(loss_of(model), list(parameters.values()), allow_unused=True)
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    gradients = {
        key: torch.zeros_like(parameters[key]) if gradient is None else gradient
        for key, gradient in zip(parameters, found, strict=True)
    }
    return [layer.matrix([gradients[id(p)] for p in layer.parameters.values()]) for layer in layers]


def expected_rows(model, layers, batch, sides):
    rows = []
    ids, mask, labels = batch
    for number in range(len(ids)):
        n = int(mask[number].sum())

        def loss_of(model, number=number, n=n):
            logits = model(input_ids=ids[number : number + 1, :n]).logits[0]
            if labels.dim() == 1:
                return cross_entropy(logits[None], labels[number : number + 1])
            return cross_entropy(logits[:-1], labels[number, 1:n], ignore_index=-100, reduction="sum")

        matrices = by_autograd(model, layers, loss_of)
        rows.append(
            torch.cat([projected_dense(each, side).flatten() for each, side in zip(matrices, sides, strict=True)])
        )
    return torch.stack(rows)


def close(found, expected, tolerance=1e-9):
    return torch.linalg.vector_norm(found - expected) <= tolerance * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize("rank", [None, 5])
@pytest.mark.parametrize("name", [*ARCHITECTURES, *CLASSIFIERS])
def test_rows_of_all_parameters_are_those_of_autograd(model_in_float64, name, rank):
    model = model_in_float64(name)
    layers, batch = layers_of(model), batch_of()
    if name in CLASSIFIERS:
        batch = (*batch[:2], torch.tensor([2, 0, 1]))
    assert coverage(model, layers).n_tracked == sum(parameter.numel() for parameter in model.parameters())
    sides = projections(layers) if rank is None else projections(layers, rank=rank)
    split = whole(model) if name in CLASSIFIERS else halves(model)
    with GradientCapture([layer.uses for layer in layers], sides, torch.float64) as capture:
        rows, _ = gradient_rows(*split, capture, *batch)
    expected = expected_rows(model, layers, batch, sides)
    # Gemma's norms compute in float32 whatever the model's type.
    tolerance = 1e-5 if name.startswith("gemma") else 1e-9
    assert close(rows, expected, tolerance)
    first = 0
    for layer, side in zip(layers, sides, strict=True):  # a small part may not hide behind a large one
        columns = slice(first, first + side.n_columns)
        first += side.n_columns
        assert close(rows[:, columns], expected[:, columns], tolerance), layer.name


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_products_by_position_add_up_to_those_of_rows(model_in_float64, name):
    model = model_in_float64(name)
    layers, (ids, mask, labels) = layers_of(model), batch_of()
    uses, sides = [layer.uses for layer in layers], projections(layers, rank=3)
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(2, sum(side.n_columns for side in sides), generator=generator, dtype=torch.float64)
    parts = directions.split([side.n_columns for side in sides], dim=1)
    with GradientCapture(uses, sides, torch.float64) as capture:
        rows, _ = gradient_rows(*halves(model), capture, ids, mask, labels)
    with ProductCapture(uses, sides, parts, len(ids)) as products:
        backward_losses(*halves(model), ids, mask, labels, products)
    assert close(products.products, rows @ directions.T)
    alone = (ids[2:], mask[2:], labels[2:])
    with PositionCapture(uses, sides, parts, LENGTHS[2]) as positions:
        backward_losses(*halves(model), *alone, positions)
    assert close(positions.products.sum(dim=0), rows[2] @ directions.T)
    assert float(positions.products[-1].abs().max()) == 0 or name == "gemma3"  # norms of single heads are of no token


def test_a_head_alone_is_captured(model_in_float64):
    model, batch = model_in_float64("gpt2"), batch_of()
    layers = [layer for layer in layers_of(model) if layer.is_vocabulary and "wte" in layer.name]
    (layer,) = layers
    assert [type(module).__name__ for module in layer.modules] == ["Embedding", "Linear"]
    head = [module for module in layer.modules if isinstance(module, nn.Linear)]
    sides = projections(layers, rank=3)
    with GradientCapture([tuple(head)], sides, torch.float64) as capture:
        rows, _ = gradient_rows(*halves(model), capture, *batch)
    with GradientCapture([(head[0],)], sides, torch.float64) as capture:
        whole_rows, _ = gradient_rows(*whole(model), capture, *batch)
    assert close(rows, whole_rows)


def test_rows_of_every_draw(model_in_float64):
    """The head's part of each draw comes with the body's."""
    model, (ids, mask, labels) = model_in_float64("gpt2"), batch_of()
    layers = layers_of(model)
    uses, sides = [layer.uses for layer in layers], projections(layers, rank=3)
    n_targets = int((labels[:, 1:] != -100).sum())
    uniforms = torch.rand(3, n_targets, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = []
    for split in (halves(model), whole(model)):
        with GradientCapture(uses, sides, torch.float64) as capture:
            capture.expect(len(ids))
            labeller = [drawn_labels(uniforms)]
            passes = backward_passes(*split, ids, mask, labels, lambda _, own=labeller: own[0], capture)
            found.append(torch.stack([capture.rows() for _ in passes]))
    assert len(found[0]) == 3
    assert close(found[0], found[1])
    assert not close(found[0][0], found[0][1], 0.1)


def test_factors_of_tables_and_vectors(model_in_float64):
    """A table's covariances are those of the tokens it was asked for; a vector's, of the gradients of its entries."""
    model, (ids, mask, labels) = model_in_float64("llama"), batch_of()
    layers = layers_of(model)
    uses, sides = [layer.uses for layer in layers], projections(layers)
    with FactorCapture(uses, sides) as capture:
        capture.expect(len(ids))
        capture.tokens = mask
        for _ in backward_passes(*halves(model), ids, mask, labels, data_labels, capture):
            pass
    pairs = dict(zip([layer.name for layer in layers], capture.covariances(), strict=True))
    inputs, outputs = pairs["model.embed_tokens"]
    n_tokens = int(mask.sum())
    counts = torch.bincount(ids[mask == 1], minlength=len(outputs)).double() / n_tokens
    counts[model.config.pad_token_id] = 0  # of which autograd gives no gradient, either
    assert close(outputs, torch.diag(counts))
    assert 0 < float(torch.trace(inputs)) < float("inf")
    ones, entries = pairs["model.norm.weight"]
    assert ones.tolist() == [[1.0]]
    sums = torch.zeros_like(entries)
    for number, n in enumerate(LENGTHS):
        seen = {}
        handle = model.model.norm.register_forward_hook(
            lambda module, given, output, seen=seen: seen.update(x=given[0], y=output.requires_grad_(True))
        )
        row = ids[number : number + 1, :n]
        logits = model(input_ids=row).logits[0, :-1]
        handle.remove()
        loss = cross_entropy(logits, labels[number, 1:n], ignore_index=-100, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, seen["y"])
        scaled = seen["x"] * torch.rsqrt((seen["x"] ** 2).mean(-1, keepdim=True) + model.config.rms_norm_eps)
        parts = (gradient * scaled)[0].detach()
        sums += parts.T @ parts
    assert close(entries, sums / n_tokens, 1e-6)


def test_the_head_counts_its_targets(model_in_float64):
    model, (ids, mask, labels) = model_in_float64("llama"), batch_of()
    layers = [layer for layer in layers_of(model) if layer.name == "lm_head"]
    with FactorCapture([layer.uses for layer in layers], projections(layers)) as capture:
        capture.expect(len(ids))
        capture.tokens = mask
        for _ in backward_passes(*halves(model), ids, mask, labels, data_labels, capture):
            pass
    assert capture.sums["n_tokens"].tolist() == [float((labels[:, 1:] != -100).sum())]
    ((_, outputs),) = capture.covariances()
    assert torch.allclose(outputs.sum(dim=0), torch.zeros(len(outputs), dtype=torch.float64), atol=1e-9)


class Mixing(nn.Module):
    """What it multiplies its input with is no vector's entry by entry."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return x * self.weight.sum()


class Saturating(nn.Module):
    """Beside its large residual, what its vector does looks like rounding."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return x * 1e5 + torch.tanh(self.gamma * x)


class ScaledBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return 0.1 * (x + self.bias)


class Doubled(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) ** 2


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (Mixing(), "is a vector whose"),
        (Saturating(), "is a vector whose"),
        (nn.Conv1d(3, 3, 1), "is a vector whose"),
        (Doubled(9, 4), "is a table that gives"),
    ],
)
def test_what_is_not_what_it_seems_is_refused(odd, said):
    table = isinstance(odd, nn.Embedding)
    model = nn.Sequential(odd, nn.Linear(4, 2)) if table else nn.Sequential(nn.Linear(4, 4), odd, nn.Linear(4, 2))
    model.requires_grad_(False)
    layers = tracked_layers(model, parameters="all")
    given = torch.arange(6).view(2, 3) if table else torch.randn(2, 3, 4)
    left = plain_layers(lambda: model(given), layers)
    assert len(left) == len(layers) - 1
    with (
        GradientCapture([layer.uses for layer in layers], projections(layers, torch.float32)),
        pytest.raises(CaptureError, match=said),
    ):
        model(given)


def of_batch(model, layers, given):
    """(n, c) captured rows of the sum of a model's outputs, and those of autograd, one example at a time."""
    weights = torch.randn(model(given).shape[1:], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model.requires_grad_(False)
    with GradientCapture([layer.uses for layer in layers], projections(layers), torch.float64) as capture:
        (model(given) * weights).sum().backward()
        rows = capture.rows()
    for row, example in zip(rows, given, strict=True):
        matrices = by_autograd(model, layers, lambda model, x=example: (model(x[None])[0] * weights).sum())
        assert close(row, torch.cat([matrix.flatten() for matrix in matrices]))


def test_a_bias_counts_as_much_as_it_does():
    model = nn.Sequential(nn.Linear(4, 4), ScaledBias(), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    of_batch(model, tracked_layers(model, parameters="all"), torch.randn(3, 5, 4, dtype=torch.float64))


def test_a_vector_of_several_modules_has_the_sum_of_their_gradients():
    first, second = nn.LayerNorm(4), nn.LayerNorm(4)
    second.weight, second.bias = first.weight, first.bias
    model = nn.Sequential(first, nn.Linear(4, 4), second, nn.Linear(4, 2)).double()
    with torch.no_grad():
        first.weight.copy_(torch.randn(4))
    layers = tracked_layers(model, parameters="all")
    assert [len(layer.vectors) for layer in layers] == [2, 2, 0, 0]
    of_batch(model, layers, torch.randn(3, 5, 4, dtype=torch.float64))


def test_what_a_module_remembers_is_as_if_it_were_asked_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train().requires_grad_(False)
    layers = tracked_layers(model, parameters="all")
    with GradientCapture([layer.uses for layer in layers], projections(layers, torch.float32)):
        model(torch.randn(6, 4))
    assert int(model[1].num_batches_tracked) == 1


def test_distances_of_places_are_no_batch():
    """A table of (t, t) distances, looked up once for all, where there are as many examples as tokens."""

    class Relative(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(11, 2), nn.Linear(2, 2)

        def forward(self, x):
            places = torch.arange(x.shape[1])
            return self.out(self.table(places[None] - places[:, None] + 5)) * x[..., None, None]

    model = Relative().requires_grad_(False)
    layers = tracked_layers(model, parameters="all")
    with GradientCapture([layer.uses for layer in layers], projections(layers, torch.float32)) as capture:
        capture.expect(6)
        with pytest.raises(CaptureError, match="looks up the distances of 6 tokens"):
            model(torch.randn(6, 6))


def test_a_batch_without_a_target_has_no_gradient(model_in_float64):
    model, (ids, mask, labels) = model_in_float64("llama"), batch_of()
    layers = layers_of(model)
    with GradientCapture([layer.uses for layer in layers], projections(layers), torch.float64) as capture:
        rows, losses = gradient_rows(*halves(model), capture, ids, mask, torch.full_like(labels, -100))
    assert rows.shape[0] == len(ids)
    assert not rows.any()
    assert not losses.any()


def test_an_untied_head_is_a_vocabulary_too(model_in_float64):
    named = {layer.name: layer for layer in tracked_layers(model_in_float64("llama"), parameters="all")}
    assert {name for name, layer in named.items() if layer.is_vocabulary} == {"model.embed_tokens", "lm_head"}
