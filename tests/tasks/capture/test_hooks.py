"""Layers that are used in unusual ways, against autograd one example at a time."""

import pytest
import torch
from torch import nn

from dataworth.tasks.capture.gradients import GradientCapture
from dataworth.tasks.capture.hooks import CaptureError
from dataworth.tasks.projection.bases import layer_projection
from dataworth.tasks.projection.config import ProjectionConfig

N, T, D = 3, 4, 5


def whole(name, layer):
    has_bias = layer.bias is not None
    return layer_projection(
        name, layer.in_features + has_bias, layer.out_features, has_bias, ProjectionConfig(kind="identity")
    )


def captured(layers, loss_of, x, *, n_examples=None, may_idle=False):
    """(n, c) rows of a batch, weights frozen."""
    for layer in layers:
        layer.requires_grad_(False)
    projections = [whole(f"l{number}", layer) for number, layer in enumerate(layers)]
    with GradientCapture(layers, projections, torch.float64, may_idle=may_idle) as capture:
        if n_examples is not None:
            capture.expect(n_examples)
        loss_of(x).backward()
        return capture.rows()


def by_autograd(layers, loss_of, examples):
    rows = []
    for example in examples:
        for layer in layers:
            layer.requires_grad_(True).zero_grad()
        loss_of(example).backward()
        parts = [torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1).flatten() for layer in layers]
        rows.append(torch.cat(parts))
    return torch.stack(rows)


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return [nn.Linear(D, D).double(), nn.Linear(D, D).double()]


@pytest.fixture
def x():
    return torch.randn(N, T, D, dtype=torch.float64)


@pytest.mark.parametrize("through_view", [False, True])
def test_outputs_that_are_changed_in_place(layers, x, through_view):
    """As Longformer scales its queries: autograd then forgets the hooks of the changed tensor."""

    def loss_of(x):
        first = layers[0](x)
        first /= 2.0
        second = layers[1](first.tanh())
        changed = second.view(-1, D) if through_view else second
        changed *= 3.0
        changed[..., 0] = 0.0
        return (changed**2).sum()

    torch.testing.assert_close(captured(layers, loss_of, x), by_autograd(layers, loss_of, x.split(1)))


def test_an_axis_between_example_and_token_is_of_the_example(layers):
    """As DeepSeek's latent attention reads (n, 1, t, d)."""
    x = torch.randn(N, 2, T, D, dtype=torch.float64)

    def loss_of(x):
        return (layers[1](layers[0](x).tanh()) ** 2).sum()

    torch.testing.assert_close(captured(layers, loss_of, x), by_autograd(layers, loss_of, x.split(1)))
    torch.testing.assert_close(captured(layers, loss_of, x, n_examples=N), by_autograd(layers, loss_of, x.split(1)))


def test_of_a_batch_of_one_everything_is_the_one_examples(layers, x):
    """Some of its tokens, in any order, and a table that a whole batch would share."""
    table = torch.randn(7, D, dtype=torch.float64)

    def loss_of(x):
        routed = layers[0](x.flatten(0, 1)[[2, 0]])
        shared = layers[1](table)
        return (routed.sum(dim=0) * shared.sum(dim=0)).sum()

    found = torch.cat([captured(layers, loss_of, one, n_examples=1) for one in x.split(1)])
    torch.testing.assert_close(found, by_autograd(layers, loss_of, x.split(1)))
    with pytest.raises(
        CaptureError, match=r"l0 reads a tensor of shape \(2, 5\), in which the examples cannot be told"
    ):
        captured(layers, loss_of, x, n_examples=N)


def test_an_expert_that_is_sent_nothing_has_no_gradient(layers, x):
    def loss_of(x):
        return (layers[0](x) ** 2).sum() + layers[1](x[:, :0]).sum()

    rows = captured(layers, loss_of, x, may_idle=True)
    assert not rows[:, D * (D + 1) :].any()
    torch.testing.assert_close(rows, by_autograd(layers, loss_of, x.split(1)))
    with pytest.raises(CaptureError, match="l1 has no part in the loss"):
        captured(layers, lambda x: (layers[0](x) ** 2).sum(), x)
    assert not captured(layers, lambda x: (layers[0](x) ** 2).sum(), x, may_idle=True)[:, D * (D + 1) :].any()


def test_a_first_axis_that_is_not_the_examples_is_refused_where_their_number_is_known(layers, x):
    def loss_of(x):
        return (layers[1](layers[0](x.transpose(0, 1)).tanh()) ** 2).sum()

    with pytest.raises(CaptureError, match=r"l0 reads a tensor of shape \(4, 3, 5\)"):
        captured(layers, loss_of, x, n_examples=N)


def test_equal_axes_are_refused_where_a_module_takes_examples_second(layers):
    square = torch.randn(T, T, D, dtype=torch.float64)
    for layer in layers:
        layer.requires_grad_(False)
    with GradientCapture(layers, [whole("l0", layers[0]), whole("l1", layers[1])]) as capture:
        capture.doubt("encoder")
        layers[0](square[:2])  # two examples, or tokens: what is stored has two rows, and ids say which
        with pytest.raises(CaptureError, match="either axis may be the examples', since encoder has batch_first=False"):
            layers[0](square)


def test_a_layer_that_gives_several_tensors_is_refused(x):
    class Router(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    router = Router(D, D).double()
    with pytest.raises(CaptureError, match="l0 does not turn one tensor into one"):
        captured([router], lambda x: router(x)[0].sum(), x)


def test_an_input_may_be_named(layers, x):
    def loss_of(x):
        return (layers[1](input=layers[0](x)) ** 2).sum()

    torch.testing.assert_close(captured(layers, loss_of, x), by_autograd(layers, loss_of, x.split(1)))
