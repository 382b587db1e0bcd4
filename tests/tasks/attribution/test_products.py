"""Products with the curvature against dense matrices, and on a language model against differences of gradients."""

import numpy as np
import pytest
import torch

from dataworth.tasks.attribution.products import CurvatureProducts
from dataworth.tasks.attribution.rows import all_rows, whole_space
from dataworth.tasks.model.displacement import displaced
from tests.reference.checkpoints import ARCHITECTURES
from tests.reference.in_memory import FrozenModel, dense_curvature, small_classifier, table, texts

STEP = 1e-4
# Attention and MLP of the second block: Conv1D of gpt2, grouped queries without biases of llama, whose norms are always
# taken in float32 and make differences coarse.
LANGUAGE_MODELS = [
    ("gpt2", ("*1.attn.c_attn", "*1.mlp.c_proj"), 1e-5),
    ("llama", ("*1.self_attn.k_proj", "*1.mlp.up_proj"), 2e-2),
]


@pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
@pytest.mark.parametrize("batch_tokens", [5, 1000])
def test_dense(kind, batch_tokens):
    model, examples = small_classifier(), table(12, 1)
    products = CurvatureProducts(model, examples, kind, batch_tokens)
    vectors = np.random.default_rng(0).standard_normal((3, products.n_columns))
    expected = vectors @ dense_curvature(model, examples, kind)
    np.testing.assert_allclose(products(vectors), expected, rtol=1e-9, atol=1e-12)
    some = np.array([7, 2, 2])
    expected = sum(CurvatureProducts(model, examples, kind)(vectors, np.array([n])) for n in some) / 3
    np.testing.assert_allclose(products(vectors, some), expected, rtol=1e-9, atol=1e-12)
    assert products(vectors[:0]).shape == (0, products.n_columns)


@pytest.fixture(params=LANGUAGE_MODELS, ids=[name for name, *_ in LANGUAGE_MODELS])
def language_model(request, model_in_float64):
    name, include, tolerance = request.param
    return FrozenModel(model_in_float64(name), include), tolerance


def moved(model, vector, what):
    """(what at +STEP v minus what at -STEP v) / (2 STEP)."""
    sizes = [layer.n_outputs * layer.n_inputs for layer in model.layers]
    parts = torch.from_numpy(vector).split(sizes)
    found = []
    for sign in (1, -1):
        amounts = [
            sign * STEP * part.view(layer.n_outputs, layer.n_inputs)
            for part, layer in zip(parts, model.layers, strict=True)
        ]
        with displaced(model.layers, amounts):
            found.append(what())
    return (found[0] - found[1]) / (2 * STEP)


def test_hessian_of_a_language_model(language_model):
    model, tolerance = language_model
    examples = texts(4, 1)
    products = CurvatureProducts(model, examples, "hessian")
    vector = np.random.default_rng(0).standard_normal(products.n_columns)
    vector /= np.linalg.norm(vector)
    expected = moved(model, vector, lambda: all_rows(model, whole_space(model), examples)[0].mean(dim=0).numpy())
    found = products(vector[None])[0]
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_gauss_newton_of_a_language_model(language_model):
    """v^T G v is the mean over examples of the sum over targets of the variance of J v under the model's chances."""
    model, tolerance = language_model
    examples = texts(4, 1)
    products = CurvatureProducts(model, examples, "gauss_newton")
    vectors = np.random.default_rng(0).standard_normal((2, products.n_columns))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = products(vectors)
    assert found[0] @ vectors[1] == pytest.approx(found[1] @ vectors[0], rel=1e-2 * tolerance)

    def logits():
        rows = [model.model(input_ids=torch.from_numpy(row)[None]).logits[0, 1:-1] for row in examples.rows]
        return torch.cat(rows)

    p, change = logits().softmax(-1), moved(model, vectors[0], logits)
    expected = ((p * change**2).sum(-1) - (p * change).sum(-1) ** 2).sum() / examples.n_examples
    assert found[0] @ vectors[0] == pytest.approx(float(expected), rel=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_can_be_differentiated_twice(model_in_float64, name):
    products = CurvatureProducts(FrozenModel(model_in_float64(name)), texts(3, 1), "hessian")
    a, b = np.random.default_rng(0).standard_normal((2, products.n_columns))
    of_a, of_b = products(np.stack([a, b]))
    assert of_a.any()
    assert of_a @ b == pytest.approx(of_b @ a, rel=1e-4)
