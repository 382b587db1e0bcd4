"""LoGra on a classifier in memory: against dense formulas in float64, and the same scores as the stores give."""

import numpy as np
import pytest
import torch
from torch import nn

from dataworth.tasks.attribution.logra import LoGra
from dataworth.tasks.corpus.examples import ShuffledLabels, TensorExamples
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.model.plain import PlainModel
from dataworth.tasks.projection.config import ProjectionConfig

N, Q, CLASSES, DAMPING = 12, 3, 4, 0.03


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return PlainModel(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double(), CLASSES)


def drawn(n, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    return TensorExamples(inputs, torch.randint(0, CLASSES, (n,), generator=generator))


def dense_rows(model, examples, labels=None):
    """(n, D): layer by layer the weight with its bias as last column, flattened; one backward pass an example."""
    rows = []
    for x, y in zip(examples.inputs, examples.labels if labels is None else labels, strict=True):
        layers = [layer for layer in model.model if isinstance(layer, nn.Linear)]
        parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
        for p in parameters:
            p.requires_grad_(True)
        loss = -model.model(x[None]).log_softmax(-1)[0, y]
        found = torch.autograd.grad(loss, parameters)
        for p in parameters:
            p.requires_grad_(False)
        pairs = zip(found[::2], found[1::2], strict=True)
        rows.append(torch.cat([torch.cat([w, b[:, None]], dim=1).flatten() for w, b in pairs]))
    return torch.stack(rows).numpy()


def dense_fisher(model, examples):
    """Exact: every class with its probability, by layer."""
    chances = model.model(examples.inputs).softmax(-1).detach().numpy()
    fisher = np.zeros((len(dense_rows(model, examples)[0]),) * 2)
    for label in range(CLASSES):
        rows = dense_rows(model, examples, torch.full((examples.n_examples,), label))
        fisher += (rows * chances[:, label, None]).T @ rows / examples.n_examples
    blocks = np.zeros_like(fisher)
    for where in (slice(0, 36), slice(36, None)):
        blocks[where, where] = fisher[where, where]
    return blocks


@pytest.mark.parametrize("kind", ["dot", "relative", "theta_relative", "cosine"])
def test_dense_formula(classifier, kind):
    examples, queries = drawn(N, 1), drawn(Q, 2)
    curvature = CurvatureConfig(labels="exact", damping=DampingConfig(rule="absolute", value=DAMPING))
    method = LoGra(ProjectionConfig(kind="identity"), curvature, kind).fit([classifier], examples)
    g, z = dense_rows(classifier, queries), dense_rows(classifier, examples)
    fisher = dense_fisher(classifier, examples)
    solved = np.linalg.solve(fisher + DAMPING * np.eye(len(fisher)), np.concatenate([g, z]).T).T
    expected = g @ solved[Q:].T
    own = np.sqrt((z * solved[Q:]).sum(axis=1))
    if kind in ("relative", "cosine"):
        expected /= own
    if kind == "theta_relative":
        expected /= np.linalg.norm(solved[Q:], axis=1)
    if kind == "cosine":
        expected /= np.sqrt((g * solved[:Q]).sum(axis=1))[:, None]
    np.testing.assert_allclose(method.score(queries), expected, rtol=1e-8, atol=1e-12)


def test_pca_is_ekfac_without_its_least_directions(classifier):
    examples, queries = drawn(N, 1), drawn(Q, 2)
    curvature = CurvatureConfig(kind="ekfac", labels="empirical", damping=DampingConfig(rule="absolute", value=DAMPING))
    whole = LoGra(ProjectionConfig(kind="identity"), curvature).fit([classifier], examples).score(queries).ravel()
    # Of the sides of 6, 6, 7 and 4 dimensions rank 6 leaves out one direction of the 7.
    for rank, least in ((6, 0.999), (4, 0.9)):
        kept = LoGra(ProjectionConfig(kind="pca", rank=rank), curvature).fit([classifier], examples).score(queries)
        assert least < np.corrcoef(kept.ravel(), whole)[0, 1] < 1 - 1e-9


def test_several_models_are_averaged(classifier):
    torch.manual_seed(1)
    other = PlainModel(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double(), CLASSES)
    examples, queries = drawn(N, 1), drawn(Q, 2)

    def scores(*models):
        method = LoGra(ProjectionConfig(rank=3), CurvatureConfig(labels="exact"))
        return method.fit(models, examples).score(queries)

    mean = (scores(classifier) + scores(other)) / 2
    np.testing.assert_allclose(scores(classifier, other), mean, rtol=1e-12)


def test_fitted_first(classifier):
    with pytest.raises(ValueError, match="fit the method"):
        LoGra(ProjectionConfig(), CurvatureConfig()).score(drawn(Q, 2))


def test_shuffled_labels_are_the_same_labels(classifier):
    examples = drawn(N, 1)
    numbers = np.arange(N)
    inputs, _, labels = ShuffledLabels(examples, 3).batch(numbers, torch.device("cpu"), 0)
    assert torch.equal(inputs, examples.inputs)
    assert not torch.equal(labels, examples.labels)
    assert torch.equal(labels.sort().values, examples.labels.sort().values)
    some = ShuffledLabels(examples, 3).batch(numbers[4:7], torch.device("cpu"), 0)[2]
    assert torch.equal(some, labels[4:7])
