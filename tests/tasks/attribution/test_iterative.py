"""Influence by iterative solves against the dense inverse of the whole curvature, blocks between layers included."""

import numpy as np
import pytest

from dataworth.tasks.attribution.iterative import CGInfluence, LiSSAInfluence
from dataworth.tasks.attribution.solvers import NotConvergedError
from tests.reference.in_memory import FrozenModel, dense_curvature, dense_rows, small_classifier, table, texts

DAMPING = 0.2


def expected_scores(model, queries, examples, kind="gauss_newton", damping=DAMPING):
    curvature = dense_curvature(model, examples, kind)
    solved = np.linalg.solve(curvature + damping * np.eye(len(curvature)), dense_rows(model, examples).T)
    return dense_rows(model, queries) @ solved


@pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
def test_conjugate_gradients(kind):
    model, examples, queries = small_classifier(), table(12, 1), table(3, 2)
    # The Hessian of this untrained model has negative eigenvalues, above -1.2.
    damping = {"gauss_newton": DAMPING, "hessian": 1.3}[kind]
    method = CGInfluence(damping, kind, tolerance=1e-11).fit([model], examples)
    expected = expected_scores(model, queries, examples, kind, damping)
    np.testing.assert_allclose(method.score(queries), expected, rtol=1e-7, atol=1e-10)


def test_lissa():
    model, examples, queries = small_classifier(), table(12, 1), table(3, 2)
    expected = expected_scores(model, queries, examples)
    method = LiSSAInfluence(DAMPING, depth=40, tolerance=1e-4).fit([model], examples)
    np.testing.assert_allclose(method.score(queries), expected, rtol=1e-3, atol=1e-4)
    sampled = LiSSAInfluence(DAMPING, depth=30, samples=6, repeats=4, scale=2.0, tolerance=0.5).fit([model], examples)
    found = sampled.score(queries)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95
    assert not np.allclose(found, expected, rtol=1e-3)
    np.testing.assert_array_equal(found, sampled.score(queries))


def test_what_did_not_converge_is_said():
    model, examples, queries = small_classifier(), table(12, 1), table(3, 2)
    with pytest.raises(NotConvergedError, match="2 iterations"):
        CGInfluence(1e-3, most_iterations=2, tolerance=1e-10).fit([model], examples).score(queries)
    with pytest.raises(NotConvergedError, match="depth"):
        LiSSAInfluence(1e-3, depth=2).fit([model], examples).score(queries)


def test_language_model(model_in_float64):
    model, examples, queries = FrozenModel(model_in_float64("gpt2"), ("*1.mlp.c_proj",)), texts(4, 1), texts(2, 2)
    exact = CGInfluence(20.0, tolerance=1e-6).fit([model], examples).score(queries)
    series = LiSSAInfluence(20.0, depth=30, tolerance=1e-2).fit([model], examples).score(queries)
    np.testing.assert_allclose(series, exact, rtol=1e-2, atol=1e-2 * np.abs(exact).max())
