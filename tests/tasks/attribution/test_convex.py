"""Influence on a convex problem against what it predicts: every example left out, and the model trained again.

Training minimises the sum of losses + N lambda |theta|^2 / 2. With H a mean over the N examples the first-order change
of a query's loss is g_q^T (H + lambda I)^-1 g_z / N (Koh & Liang 2017, equation 2); scores are without the 1 / N. What
they neglect grows with an example's leverage, on average the number of parameters that the penalty leaves free, over N.
"""

import numpy as np
import pytest
import torch
from torch import nn

from dataworth.tasks.attribution.arnoldi import ArnoldiInfluence
from dataworth.tasks.attribution.iterative import CGInfluence, LiSSAInfluence
from dataworth.tasks.attribution.logra import LoGra
from dataworth.tasks.corpus.examples import TensorExamples
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.model.plain import PlainModel
from dataworth.tasks.projection.config import ProjectionConfig

N, Q, FEATURES, CLASSES, LAMBDA = 600, 20, 3, 2, 0.02


def predictions(theta, inputs):
    logits = np.hstack([inputs, np.ones((len(inputs), 1))]) @ theta.T
    logits -= logits.max(axis=1, keepdims=True)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def losses(theta, inputs, labels):
    return -np.log(predictions(theta, inputs)[np.arange(len(labels)), labels])


def trained(inputs, labels, start):
    """(classes, features + 1) weights that minimise the penalised loss, by Newton's method in float64."""
    theta, x = start.copy(), np.hstack([inputs, np.ones((len(inputs), 1))])
    for _ in range(50):
        p = predictions(theta, inputs)
        gradient = (p - np.eye(CLASSES)[labels]).T @ x + N * LAMBDA * theta
        outer = np.einsum("nc,cd->ncd", p, np.eye(CLASSES)) - np.einsum("nc,nd->ncd", p, p)
        hessian = np.einsum("ncd,ni,nj->cidj", outer, x, x).reshape(theta.size, theta.size)
        step = np.linalg.solve(hessian + N * LAMBDA * np.eye(theta.size), gradient.ravel()).reshape(theta.shape)
        theta = theta - step
        if np.abs(step).max() < 1e-14:
            return theta
    raise AssertionError("Newton's method did not converge")


@pytest.fixture(scope="module")
def problem():
    """The trained model, the examples, the queries, and what leaving out each example really does to the queries."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((N + Q, FEATURES))
    labels = (rng.random(N + Q) < 1 / (1 + np.exp(-inputs @ [1.0, -0.7, 0.4]))).astype(np.int64)
    theta = trained(inputs[:N], labels[:N], np.zeros((CLASSES, FEATURES + 1)))
    before = losses(theta, inputs[N:], labels[N:])
    actual = np.empty((Q, N))
    for left_out in range(N):
        kept = np.arange(N) != left_out
        again = trained(inputs[:N][kept], labels[:N][kept], theta)
        actual[:, left_out] = losses(again, inputs[N:], labels[N:]) - before
    layer = nn.Linear(FEATURES, CLASSES).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(theta[:, :-1]))
        layer.bias.copy_(torch.from_numpy(theta[:, -1]))
    model = PlainModel(nn.Sequential(layer), CLASSES)
    rows = [TensorExamples(torch.from_numpy(inputs[part]), torch.from_numpy(labels[part])) for part in SPLIT]
    return model, *rows, actual


SPLIT = (slice(0, N), slice(N, N + Q))
EXACT_FISHER = CurvatureConfig(labels="exact", damping=DampingConfig(rule="absolute", value=LAMBDA))
METHODS = {
    "LoGra": LoGra(ProjectionConfig(kind="identity"), EXACT_FISHER),
    "conjugate gradients": CGInfluence(LAMBDA, tolerance=1e-9),
    "conjugate gradients, Hessian": CGInfluence(LAMBDA, "hessian", tolerance=1e-9),
    "LiSSA": LiSSAInfluence(LAMBDA, depth=30, tolerance=1e-3),
    "Arnoldi": ArnoldiInfluence(iterations=8, rank=8, damping=LAMBDA),
}


@pytest.mark.parametrize("name", METHODS)
def test_influence_is_what_leaving_out_does(problem, name):
    model, examples, queries, actual = problem
    predicted = METHODS[name].fit([model], examples).score(queries) / N
    assert np.corrcoef(predicted.ravel(), actual.ravel())[0, 1] > 0.99
    slope = (predicted * actual).sum() / (predicted**2).sum()
    assert slope == pytest.approx(1, abs=0.02)


def test_methods_agree(problem):
    """On a linear softmax model the Gauss-Newton matrix, the exact Fisher and the Hessian are the same."""
    model, examples, queries, _ = problem
    expected = METHODS["LoGra"].fit([model], examples).score(queries)
    for name in ("conjugate gradients", "conjugate gradients, Hessian", "Arnoldi"):
        found = METHODS[name].fit([model], examples).score(queries)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())
