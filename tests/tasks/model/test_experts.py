"""Experts that are one tensor, each a layer of its own: against transformers' own sums, and against autograd."""

import pytest
import torch
import transformers as hf
from torch.nn.functional import cross_entropy

from dataworth.tasks.capture.factors import FactorCapture
from dataworth.tasks.capture.gradients import GradientCapture
from dataworth.tasks.capture.hooks import CaptureError
from dataworth.tasks.capture.losses import data_labels
from dataworth.tasks.capture.passes import backward_losses, backward_passes, gradient_rows
from dataworth.tasks.capture.positions import PositionCapture
from dataworth.tasks.model.displacement import base_displacements, displaced
from dataworth.tasks.model.experts import experts_as_layers
from dataworth.tasks.model.halves import halves
from dataworth.tasks.model.layers import coverage, tracked_layers
from dataworth.tasks.model.probes import plain_layers
from dataworth.tasks.projection.bases import projections_of
from dataworth.tasks.projection.config import ProjectionConfig

SIZE = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 4}
SIZE |= {"num_key_value_heads": 1, "intermediate_size": 6, "num_local_experts": 4, "num_experts_per_tok": 2}
KINDS = {
    "mixtral": (hf.MixtralConfig, hf.MixtralForCausalLM),
    "gpt-oss": (hf.GptOssConfig, hf.GptOssForCausalLM),  # with biases, transposed, and gates of its own
}
LENGTHS = (5, 9, 7)


@pytest.fixture(params=KINDS)
def model(request):
    configuration, kind = KINDS[request.param]
    torch.manual_seed(0)
    model = kind(configuration(**SIZE)).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 40, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return ids * mask, mask, ids.masked_fill(mask == 0, -100)


def experts_of(model):
    return [layer for layer in tracked_layers(model, parameters="all") if ".experts." in layer.name]


def test_the_model_computes_what_it_did(model):
    ids, mask, _ = batch()
    model.set_experts_implementation("eager")
    before = model(input_ids=ids, attention_mask=mask).logits
    n_tracked = coverage(model, tracked_layers(model, parameters="all")).n_tracked
    state = list(model.state_dict())
    experts_as_layers(model)
    after = model(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(before, after, rtol=1e-10, atol=1e-12)
    assert list(model.state_dict()) == state
    own = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert coverage(model, tracked_layers(model, parameters="all")).n_tracked == n_tracked + own
    assert not [layer for layer in tracked_layers(model) if ".experts." in layer.name]
    assert len(experts_of(model)) == 2 * 2 * 4


def test_rows_are_those_of_autograd(model):
    experts_as_layers(model)
    layers, (ids, mask, labels) = experts_of(model), batch()
    projections = projections_of(layers, ProjectionConfig(kind="identity"))
    uses = [layer.uses for layer in layers]
    with GradientCapture(uses, projections, torch.float64, may_idle=True) as capture:
        rows, _ = gradient_rows(*halves(model), capture, ids, mask, labels)
    leaves = {id(leaf): leaf for layer in layers for leaf, _ in layer.leaves.values()}
    for number, length in enumerate(LENGTHS):
        for leaf in leaves.values():
            leaf.requires_grad_(True)
        logits = model(input_ids=ids[number : number + 1, :length]).logits[0, :-1]
        loss = cross_entropy(logits, labels[number, 1:length], reduction="sum")
        found = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        for leaf in leaves.values():
            leaf.requires_grad_(False)
        expected = [layer.matrix([found[id(p)][e] for p, e in layer.leaves.values()]).flatten() for layer in layers]
        expected = torch.cat(expected)
        assert torch.linalg.vector_norm(rows[number] - expected) <= 1e-9 * torch.linalg.vector_norm(expected)
        assert torch.linalg.vector_norm(expected) > 1e-3


def test_products_by_position_add_up(model):
    experts_as_layers(model)
    (ids, mask, labels), every = batch(), tracked_layers(model, parameters="all")
    layers = plain_layers(lambda: model(input_ids=ids[:1]), every)
    alone = (ids[1:2], mask[1:2], labels[1:2])
    uses = [layer.uses for layer in layers]
    projections = [p.to(torch.device("cpu"), torch.float64) for p in projections_of(layers, ProjectionConfig(rank=3))]
    with GradientCapture(uses, projections, torch.float64, may_idle=True) as capture:
        rows, _ = gradient_rows(*halves(model), capture, *alone)
    directions = torch.randn(2, rows.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    by_layer = directions.split([each.n_columns for each in projections], dim=1)
    with PositionCapture(uses, projections, by_layer, LENGTHS[1]) as positions:
        backward_losses(*halves(model), *alone, positions)
    assert torch.allclose(positions.products.sum(dim=0), (rows @ directions.T)[0])
    assert float(positions.products[-1].abs().max()) == 0  # all is of some position


def test_factors_leave_out_padding_and_know_idle_experts(model):
    experts_as_layers(model)
    layers, (ids, mask, labels) = experts_of(model), batch()
    projections = projections_of(layers, ProjectionConfig(kind="identity"))
    uses = [layer.uses for layer in layers]

    def summed(*batches):
        with FactorCapture(uses, projections) as capture:
            for some in batches:
                capture.expect(len(some[0]))
                capture.tokens = some[1]
                for _ in backward_passes(*halves(model), *some, data_labels, capture):
                    pass
        return capture

    together = summed((ids, mask, labels))
    rows = [(ids[n : n + 1, :t], mask[n : n + 1, :t], labels[n : n + 1, :t]) for n, t in enumerate(LENGTHS)]
    alone = summed(*rows)
    assert together.sums["n_tokens"].tolist() == alone.sums["n_tokens"].tolist()
    assert together.sums["n_tokens"].sum() == 2 * 2 * 2 * sum(LENGTHS)  # layers, matrices, experts a token
    for one, other in zip(together.covariances(), alone.covariances(), strict=True):
        assert all(torch.allclose(*pair) for pair in zip(one, other, strict=True))
    n_all = float(together.sums["n_batch_tokens"])
    assert n_all == sum(LENGTHS)
    for (_, outputs), number in zip(together.covariances(), range(len(layers)), strict=True):
        assert torch.allclose(outputs, together.sums[f"output {number}"] / n_all)  # a rare expert's is small
    few = summed(tuple(each[:, :2] for each in rows[0]))  # two tokens do not reach all experts
    assert 0 in few.sums["n_tokens"]
    assert all(torch.isfinite(side).all() for pair in few.covariances() for side in pair)


def test_one_expert_is_moved_and_back(model):
    experts_as_layers(model)
    layer, other = experts_of(model)[:2]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    away = base_displacements([layer], {name: torch.zeros_like(p) for name, p in layer.parameters.items()})
    assert torch.allclose(away[0], -layer.matrix(list(layer.parameters.values())))
    kept = [tensor.clone() for tensor in other.parameters.values()]
    with displaced([layer], away):
        assert all(float(tensor.abs().max()) < 1e-12 for tensor in layer.parameters.values())
        assert all(torch.equal(*pair) for pair in zip(other.parameters.values(), kept, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_tokens_of_nobody_are_refused(model):
    experts_as_layers(model)
    (layer,) = experts_of(model)[:1]
    projections = projections_of([layer], ProjectionConfig(kind="identity"))
    with GradientCapture([layer.uses], projections), pytest.raises(CaptureError, match="nobody says whose they are"):
        layer.module(torch.randn(3, 8, dtype=torch.float64))
