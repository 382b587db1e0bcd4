"""Arnoldi influence against the leading eigenpairs of the dense curvature."""

import numpy as np
import pytest

from dataworth.tasks.attribution.arnoldi import ArnoldiInfluence, leading_eigenpairs
from tests.reference.in_memory import FrozenModel, dense_curvature, dense_rows, small_classifier, table, texts

SIZE = 10


@pytest.mark.parametrize("repeated", [False, True])
def test_all_eigenpairs(repeated):
    """The Krylov space of a matrix with repeated eigenvalues closes early and is opened again."""
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))[0]
    values = np.repeat([-3.0, 1.0, 0.5, 0.0, 2.0], 2) if repeated else np.linspace(-4, 5.5, SIZE)
    matrix = vectors @ np.diag(values) @ vectors.T
    found, rows = leading_eigenpairs(lambda v: v @ matrix, SIZE, iterations=SIZE, rank=SIZE, seed=1)
    np.testing.assert_allclose(np.abs(found), np.sort(np.abs(values))[::-1], atol=1e-10)
    np.testing.assert_allclose(rows @ rows.T, np.eye(SIZE), atol=1e-10)
    np.testing.assert_allclose(rows.T @ np.diag(found) @ rows, matrix, atol=1e-10)


def test_few_iterations_find_the_largest():
    values = np.concatenate([np.linspace(0, 0.01, 97), [5.0, -8.0, 3.0]])
    found, rows = leading_eigenpairs(lambda v: v * values, 100, iterations=12, rank=3, seed=0)
    np.testing.assert_allclose(found, [-8, 5, 3], rtol=1e-8)
    assert np.argmax(np.abs(rows), axis=1).tolist() == [98, 97, 99]


@pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
@pytest.mark.parametrize("damping", [0.0, 0.2])
def test_scores_in_the_leading_subspace(kind, damping):
    model, examples, queries = small_classifier(), table(12, 1), table(3, 2)
    values, vectors = np.linalg.eigh(dense_curvature(model, examples, kind))
    leading = np.argsort(-np.abs(values))[:8]
    g, z = dense_rows(model, queries) @ vectors[:, leading], dense_rows(model, examples) @ vectors[:, leading]
    expected = (g / (values[leading] + damping)) @ z.T
    method = ArnoldiInfluence(iterations=64, rank=8, damping=damping, curvature=kind).fit([model], examples)
    np.testing.assert_allclose(method.score(queries), expected, rtol=1e-6, atol=1e-10)


def test_language_model(model_in_float64):
    model, examples, queries = FrozenModel(model_in_float64("gpt2"), ("*1.attn.c_attn",)), texts(4, 1), texts(2, 2)
    method = ArnoldiInfluence(iterations=6, rank=2).fit([model], examples)
    assert np.isfinite(method.score(queries)).all()
    assert (np.diagonal(method.score(examples)) > 0).all()


def test_what_is_refused():
    with pytest.raises(ValueError, match="9 eigenpairs.*8 iterations"):
        ArnoldiInfluence(iterations=8, rank=9)
    with pytest.raises(ValueError, match="65 iterations.*64"):
        ArnoldiInfluence(iterations=65, rank=8).fit([small_classifier()], table(12, 1))
    # 4 classes and 12 examples give the Gauss-Newton matrix a rank of 36.
    with pytest.raises(ValueError, match="damping"):
        ArnoldiInfluence(iterations=64, rank=50).fit([small_classifier()], table(12, 1))
