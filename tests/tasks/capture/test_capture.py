"""Capture and LoGra against autograd on the weights, on every architecture."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataworth.tasks.capture.gradients import GradientCapture
from dataworth.tasks.capture.hooks import CaptureError
from dataworth.tasks.capture.losses import data_labels, drawn_labels, every_class, example_losses, target_losses
from dataworth.tasks.capture.passes import backward_passes, gradient_rows
from dataworth.tasks.model.halves import halves
from dataworth.tasks.model.halves import whole as in_one_piece
from dataworth.tasks.model.layers import coverage, tracked_layers
from dataworth.tasks.projection.bases import layer_projection
from dataworth.tasks.projection.config import ProjectionConfig
from tests.reference.checkpoints import ARCHITECTURES, CLASSIFIERS
from tests.reference.dense import dense_gradients, negative_log_likelihood, projected_dense

LENGTHS = (7, 2, 11)


def projections(layers, rank=None, dtype=torch.float64):
    config = ProjectionConfig(kind="identity") if rank is None else ProjectionConfig(rank=rank)
    return [
        layer_projection(layer.name, layer.n_inputs, layer.n_outputs, layer.has_bias, config).to(
            torch.device("cpu"), dtype
        )
        for layer in layers
    ]


def whole(name, n_inputs, n_outputs, has_bias):
    return layer_projection(name, n_inputs, n_outputs, has_bias, ProjectionConfig(kind="identity"))


def batch_of(lengths, vocabulary=250, masked=0):
    generator = torch.Generator().manual_seed(3)
    examples = []
    for length in lengths:
        ids = torch.randint(2, vocabulary, (length,), generator=generator)
        labels = ids.clone()
        labels[:masked] = -100
        examples.append((ids, labels))
    width = max(lengths)
    input_ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, -100)
    for row, (ids, own) in enumerate(examples):
        input_ids[row, : len(ids)], mask[row, : len(ids)], labels[row, : len(ids)] = ids, 1, own
    return examples, (input_ids, mask, labels)


def captured(model, layers, rank, batch, dtype=torch.float64, parts=None):
    modules = [layer.module for layer in layers]
    with GradientCapture(modules, projections(layers, rank, dtype), dtype) as capture:
        return gradient_rows(*(parts or halves(model)), capture, *batch)


@pytest.mark.parametrize("rank", [None, 1, 5, 16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_equal_the_projected_autograd_gradients(model_in_float64, name, rank):
    model = model_in_float64(name)
    layers = tracked_layers(model)
    examples, batch = batch_of(LENGTHS)
    rows, losses = captured(model, layers, rank, batch)
    dense = dense_gradients(model, [layer.module for layer in layers], examples)
    for row, by_layer in zip(rows, dense, strict=True):
        expected = []
        for projection, gradient in zip(projections(layers, rank), by_layer, strict=True):
            gradient = projected_dense(gradient, projection)
            expected.append(gradient.flatten())
        expected = torch.cat(expected)
        # Gemma 2 caps its attention scores, and then takes their softmax in float32 whatever the model's type.
        tolerance = 1e-5 if name == "gemma2" else 1e-9
        assert torch.linalg.vector_norm(row - expected) <= tolerance * torch.linalg.vector_norm(expected)
        assert torch.linalg.vector_norm(expected) > 1e-3
    expected_losses = [float(negative_log_likelihood(model, *example)) for example in examples]
    assert losses.tolist() == pytest.approx(expected_losses, rel=1e-6 if name == "gemma2" else 1e-12)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_row_does_not_depend_on_its_batch(checkpoints, name):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoints[name]).eval().requires_grad_(False)
    layers = tracked_layers(model)
    examples, batch = batch_of((9, 4, 13, 4, 2))
    together, _ = captured(model, layers, 4, batch, torch.float32)
    for row, (ids, labels) in zip(together, examples, strict=True):
        alone, _ = captured(model, layers, 4, (ids[None], torch.ones_like(ids)[None], labels[None]), torch.float32)
        assert torch.linalg.vector_norm(row - alone[0]) <= 1e-5 * torch.linalg.vector_norm(alone[0])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_give_one_gradient_an_example(model_in_float64, name):
    """Padded in a batch against alone, and against autograd; the pooler reads one row an example."""
    model = model_in_float64(name)
    layers = tracked_layers(model)
    examples, (input_ids, mask, _) = batch_of(LENGTHS)
    labels = torch.tensor([0, 2, 1])
    with GradientCapture([layer.module for layer in layers], projections(layers), torch.float64) as capture:
        rows, losses = gradient_rows(*in_one_piece(model), capture, input_ids, mask, labels)
    expected = [class_gradient(model, layers, ids, label) for (ids, _), label in zip(examples, labels, strict=True)]
    for row, found, (loss, gradient) in zip(rows, losses, expected, strict=True):
        assert torch.linalg.vector_norm(row - gradient) <= 1e-9 * torch.linalg.vector_norm(gradient)
        assert float(found) == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_row_of_a_classifier_does_not_depend_on_its_batch(checkpoints, name):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(checkpoints[name]).eval().requires_grad_(False)
    layers = tracked_layers(model)
    examples, (input_ids, mask, _) = batch_of((9, 4, 13, 4, 2))
    labels = torch.tensor([0, 2, 1, 1, 0])

    def rows(*batch):
        with GradientCapture([layer.modules for layer in layers], projections(layers, 4, torch.float32)) as capture:
            return gradient_rows(*in_one_piece(model), capture, *batch)[0]

    together = rows(input_ids, mask, labels)
    for number, (ids, _) in enumerate(examples):
        alone = rows(ids[None], torch.ones_like(ids)[None], labels[number : number + 1])[0]
        assert torch.linalg.vector_norm(together[number] - alone) <= 1e-5 * torch.linalg.vector_norm(alone)


def class_gradient(model, layers, ids, label):
    parameters = [p for layer in layers for p in (layer.module.weight, layer.module.bias)]
    for parameter in parameters:
        parameter.requires_grad_(True)
    loss = -model(input_ids=ids[None]).logits[0].log_softmax(-1)[label]
    gradients = torch.autograd.grad(loss, parameters)
    loss = loss.detach()
    for parameter in parameters:
        parameter.requires_grad_(False)
    blocks = [torch.cat([w, b[:, None]], dim=1).flatten() for w, b in zip(gradients[::2], gradients[1::2], strict=True)]
    return loss.item(), torch.cat(blocks)


def test_every_class_with_its_probability_gives_the_exact_fisher(model_in_float64):
    model = model_in_float64("bert classifier")
    layers = tracked_layers(model)
    examples, (input_ids, mask, _) = batch_of(LENGTHS)
    labels = torch.zeros(3, dtype=torch.long)
    with GradientCapture([layer.module for layer in layers], projections(layers), torch.float64) as capture:
        rows = [
            capture.rows()
            for _ in backward_passes(*in_one_piece(model), input_ids, mask, labels, lambda _: every_class(3))
        ]
    assert len(rows) == 3
    for number, (ids, _) in enumerate(examples):
        probabilities = model(input_ids=ids[None]).logits[0].softmax(-1).tolist()
        for label, probability in enumerate(probabilities):
            _, gradient = class_gradient(model, layers, ids, label)
            torch.testing.assert_close(rows[label][number], gradient * probability**0.5, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_body_and_head_make_the_models_logits(model_in_float64, name):
    """Split in two wherever the architecture allows it: here everywhere but in BERT, whose head is a network."""
    model = model_in_float64(name)
    _, (input_ids, mask, _) = batch_of(LENGTHS)
    body, head = halves(model)
    states = body(input_ids, mask)
    logits = model(input_ids=input_ids, attention_mask=mask).logits
    torch.testing.assert_close(head(states)[mask.bool()], logits[mask.bool()], rtol=1e-6, atol=1e-6)
    assert (states.shape[-1] == 16) == (name != "bert")


def test_tokens_of_all_examples_in_one_dimension_are_told_apart():
    torch.manual_seed(0)
    first, second = torch.nn.Linear(3, 4).double(), torch.nn.Linear(4, 2).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    layers = [whole("first", 4, 4, True), whole("second", 5, 2, True)]

    def loss(inputs):
        return (second(first(inputs).flatten(0, 1)) ** 3).sum()

    with GradientCapture([first, second], layers, torch.float64) as capture:
        loss(x).backward()
        rows = capture.rows()
    for example in range(2):
        second.zero_grad()
        loss(x[example : example + 1]).backward()
        expected = torch.cat([second.weight.grad, second.bias.grad[:, None]], dim=1).flatten()
        torch.testing.assert_close(rows[example, 16:], expected)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "neox"])
def test_left_padding_gives_the_same_rows(model_in_float64, name):
    model = model_in_float64(name)
    layers = tracked_layers(model)
    examples, right = batch_of(LENGTHS)
    left = [torch.zeros_like(part) for part in right]
    left[2].fill_(-100)
    for row, (ids, labels) in enumerate(examples):
        left[0][row, -len(ids) :], left[1][row, -len(ids) :], left[2][row, -len(ids) :] = ids, 1, labels
    positions = (left[1].cumsum(dim=1) - 1).clamp(min=0)
    expected, _ = captured(model, layers, 4, right)
    with GradientCapture([layer.module for layer in layers], projections(layers, 4), torch.float64) as capture:
        logits = model(input_ids=left[0], attention_mask=left[1], position_ids=positions).logits
        # The first token of an example has no prefix; padding before it must not give it one.
        labels = left[2].masked_fill(positions == 0, -100)
        example_losses(logits, labels).sum().backward()
        rows = capture.rows()
    torch.testing.assert_close(rows, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_same_rows_to_its_precision(checkpoints, dtype):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"]).eval().requires_grad_(False)
    layers = tracked_layers(model)
    _, batch = batch_of(LENGTHS)
    expected, _ = captured(model, layers, 4, batch, torch.float32)
    with torch.autocast("cpu", dtype):
        rows, _ = captured(model, layers, 4, batch, torch.float32)
    for row, whole_row in zip(rows, expected, strict=True):
        assert torch.linalg.vector_norm(row - whole_row) <= 0.05 * torch.linalg.vector_norm(whole_row)


def test_masked_prompt_tokens_carry_no_loss(model_in_float64):
    model = model_in_float64("llama")
    layers = tracked_layers(model)
    examples, batch = batch_of((8, 6), masked=3)
    rows, _ = captured(model, layers, None, batch)
    dense = dense_gradients(model, [layer.module for layer in layers], examples)
    expected = torch.stack([torch.cat([gradient.flatten() for gradient in item]) for item in dense])
    torch.testing.assert_close(rows, expected)


def test_weights_stay_frozen_and_no_hook_is_left(model_in_float64):
    model = model_in_float64("gpt2")
    layers = tracked_layers(model)
    _, batch = batch_of(LENGTHS)
    first, _ = captured(model, layers, 3, batch)
    second, _ = captured(model, layers, 3, batch)
    assert torch.equal(first, second)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert all(not layer.module._forward_hooks for layer in layers)


def test_it_works_with_trainable_weights_and_leaves_their_gradients_right(model_in_float64):
    model = model_in_float64("llama")
    layers = tracked_layers(model)
    _, batch = batch_of(LENGTHS)
    frozen, _ = captured(model, layers, 4, batch)
    model.requires_grad_(True)
    trainable, _ = captured(model, layers, 4, batch)
    torch.testing.assert_close(frozen, trainable, rtol=1e-12, atol=1e-12)
    weight = layers[0].module.weight
    kept = weight.grad.clone()
    model.zero_grad()
    example_losses(model(input_ids=batch[0], attention_mask=batch[1]).logits, batch[2]).sum().backward()
    torch.testing.assert_close(kept, weight.grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_counts_nothing_twice(model_in_float64, reentrant):
    model = model_in_float64("llama")
    layers = tracked_layers(model)
    _, batch = batch_of(LENGTHS)
    plain, _ = captured(model, layers, 4, batch)
    parts = halves(model)
    model.train()  # checkpointing is active in training mode only; this model has no dropout
    model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    again, _ = captured(model, layers, 4, batch, parts=parts)
    torch.testing.assert_close(plain, again, rtol=1e-12, atol=1e-12)


def test_a_module_called_twice_gives_the_sum_of_its_calls():
    torch.manual_seed(0)
    linear = torch.nn.Linear(3, 3).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    with GradientCapture([linear], [whole("l", 4, 3, True)], torch.float64) as capture:
        (linear(torch.tanh(linear(x))) ** 2).sum().backward()
        rows = capture.rows()
    for example in range(2):
        linear.zero_grad()
        (linear(torch.tanh(linear(x[example]))) ** 2).sum().backward()
        expected = torch.cat([linear.weight.grad, linear.bias.grad[:, None]], dim=1).flatten()
        torch.testing.assert_close(rows[example], expected)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 3), t=st.integers(1, 4), n_in=st.integers(1, 5), n_out=st.integers(1, 5), bias=st.booleans())
def test_drawn_shapes_of_one_linear_layer(n, t, n_in, n_out, bias):
    torch.manual_seed(n + 10 * t)
    linear = torch.nn.Linear(n_in, n_out, bias=bias).double()
    x = torch.randn(n, t, n_in, dtype=torch.float64)
    weight = torch.randn(n, t, n_out, dtype=torch.float64)
    projection = whole("l", n_in + bias, n_out, bias)
    with GradientCapture([linear], [projection], torch.float64) as capture:
        (linear(x) * weight).sum().backward()
        rows = capture.rows()
    inputs = torch.cat([x, torch.ones(n, t, 1, dtype=torch.float64)], dim=2) if bias else x
    expected = torch.einsum("nto,nti->noi", weight, inputs).flatten(1)
    torch.testing.assert_close(rows, expected)


def test_wrong_uses_are_told():
    linear = torch.nn.Linear(3, 3)
    projection = whole("body.l", 4, 3, True)
    with (
        GradientCapture([linear], [projection]) as capture,
        pytest.raises(CaptureError, match="call loss.backward"),
    ):
        capture.rows()
    with GradientCapture([linear], [projection]):
        linear(torch.ones(2, 4, 3))
        with pytest.raises(CaptureError, match=r"body\.l reads .*shape \(5, 3\)"):
            linear(torch.ones(5, 3))  # five tokens of two examples, routed: whose are they?
    other = torch.nn.Linear(3, 3)
    with GradientCapture([linear, other], [projection, whole("body.idle", 4, 3, True)]) as capture:
        linear(torch.ones(1, 2, 3)).sum().backward()
        with pytest.raises(CaptureError, match=r"body\.idle has no part"):
            capture.rows()
    with GradientCapture([linear], [projection]) as capture, pytest.raises(CaptureError, match="already active"):
        capture.__enter__()


def test_drawn_labels_follow_the_model():
    logits = torch.log(torch.tensor([0.1, 0.6, 0.3])).expand(2, 3)
    uniforms = torch.rand(8000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn, weights = drawn_labels(uniforms)(logits, slice(0, 2))
    assert drawn.shape == weights.shape == (8000, 2)
    frequencies = torch.stack([(drawn == token).double().mean(dim=0) for token in range(3)])
    for target in range(2):
        assert frequencies[:, target].tolist() == pytest.approx([0.1, 0.6, 0.3], abs=0.015)
    assert weights.sum(dim=0).tolist() == pytest.approx([1.0, 1.0], rel=1e-5)
    edges, _ = drawn_labels(torch.tensor([[0.0], [1 - 1e-12]], dtype=torch.float64))(logits[:1], slice(0, 1))
    assert edges.flatten().tolist() == [0, 2]


def test_drawn_rows_are_gradients_under_the_drawn_labels(model_in_float64):
    model = model_in_float64("neox")
    layers = tracked_layers(model)
    examples, batch = batch_of(LENGTHS)
    modules = [layer.module for layer in layers]
    n_targets = sum(length - 1 for length in LENGTHS)
    uniforms = torch.rand(3, n_targets, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with GradientCapture(modules, projections(layers), torch.float64) as capture:
        passes = backward_passes(*halves(model), *batch, lambda _: drawn_labels(uniforms))
        rows = [capture.rows() for _ in passes]
    logits = model(input_ids=batch[0], attention_mask=batch[1]).logits
    places = [(row, place) for row, length in enumerate(LENGTHS) for place in range(1, length)]
    assert len(rows) == 3
    for draw, found in enumerate(rows):
        redrawn = [(ids, labels.clone()) for ids, labels in examples]
        for (row, place), uniform in zip(places, uniforms[draw], strict=True):
            upto = logits[row, place - 1].softmax(-1).cumsum(-1)
            redrawn[row][1][place] = int((upto <= uniform).sum())
        dense = dense_gradients(model, modules, redrawn)
        expected = torch.stack([torch.cat([gradient.flatten() for gradient in item]) for item in dense])
        torch.testing.assert_close(found, expected / 3**0.5)


@pytest.mark.parametrize("n_targets", [0, 1, 5])
def test_losses_in_pieces_and_their_gradients(monkeypatch, n_targets):
    monkeypatch.setattr("dataworth.tasks.capture.losses.PIECE_TARGETS", 2)
    torch.manual_seed(0)
    head = torch.nn.Linear(3, 7).double().requires_grad_(False)
    hidden = torch.randn(n_targets, 3, dtype=torch.float64, requires_grad=True)
    targets, outer = torch.arange(n_targets) % 7, torch.randn(n_targets, dtype=torch.float64)
    (losses,) = target_losses(hidden, head, data_labels(targets))
    (losses * outer).sum().backward()
    found, hidden.grad = hidden.grad, None
    expected = -head(hidden).log_softmax(-1)[torch.arange(n_targets), targets]
    (expected * outer).sum().backward()
    torch.testing.assert_close(losses.double(), expected)
    torch.testing.assert_close(found, hidden.grad)


def test_two_modules_of_one_weight_are_one_layer_whose_gradient_is_the_sum():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3)).double()
    model[2].weight, model[2].bias = model[0].weight, model[0].bias
    (layer,) = tracked_layers(model)
    assert (layer.name, len(layer.modules)) == ("0", 2)
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    with GradientCapture([layer.modules], [whole("0", 4, 3, True)], torch.float64) as capture:
        (model(x) ** 2).sum().backward()
        rows = capture.rows()
    for example in range(2):
        model.zero_grad()
        (model(x[example]) ** 2).sum().backward()
        expected = torch.cat([model[0].weight.grad, model[0].bias.grad[:, None]], dim=1).flatten()
        torch.testing.assert_close(rows[example], expected)


class QuantisedLinear(torch.nn.Module):
    """A linear layer of eight-bit integers and a scale, as quantisation libraries keep them; no nn.Linear."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x):
        return torch.nn.functional.linear(x, self.qweight.to(x.dtype) * self.scale, self.bias)


def test_quantised_layers_are_tracked_like_the_weights_they_stand_for(model_in_float64):
    model = model_in_float64("llama with biases")
    dense_layers = tracked_layers(model)
    for layer in dense_layers:
        parent, _, child = layer.name.rpartition(".")
        setattr(model.get_submodule(parent), child, QuantisedLinear(layer.module))
    layers = tracked_layers(model)
    assert [layer.name for layer in layers] == [layer.name for layer in dense_layers]
    examples, batch = batch_of(LENGTHS)
    rows, _ = captured(model, layers, None, batch)
    for layer in layers:
        parent, _, child = layer.name.rpartition(".")
        linear = torch.nn.Linear(layer.n_inputs - 1, layer.n_outputs).double()
        with torch.no_grad():
            linear.weight.copy_(layer.module.qweight * layer.module.scale)
            linear.bias.copy_(layer.module.bias)
        setattr(model.get_submodule(parent), child, linear)
    modules = [layer.module for layer in tracked_layers(model)]
    dense = dense_gradients(model, modules, examples)
    expected = torch.stack([torch.cat([gradient.flatten() for gradient in item]) for item in dense])
    torch.testing.assert_close(rows, expected)
    assert coverage(model, layers).n_tracked == sum(layer.n_inputs * layer.n_outputs for layer in layers)
