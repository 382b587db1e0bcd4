"""TRAK against its formula in numpy, with the same sketch written as a matrix."""

import numpy as np
import pytest
import torch

from dataworth.tasks.attribution.trak import TRAK, row_sketch
from tests.reference.in_memory import FrozenModel, dense_rows, small_classifier, table, texts

DIMENSIONS, SEED = 7, 5


def chances(model, examples):
    p = model.model(examples.inputs).softmax(-1).detach().numpy()
    return p[np.arange(len(p)), examples.labels.numpy()]


def sketch_matrix(number, n_columns):
    sketch = row_sketch(n_columns, DIMENSIONS, SEED, number)
    matrix = np.zeros((n_columns, DIMENSIONS))
    matrix[np.arange(n_columns), sketch.column.numpy()] = sketch.sign.numpy()
    return matrix


def features(model, examples, number):
    """phi = P^T gradient of log(p / (1 - p)) by autograd on that very function."""
    parameters = list(model.model.parameters())
    found = []
    for x, y in zip(examples.inputs, examples.labels, strict=True):
        for parameter in parameters:
            parameter.requires_grad_(True)
        p = model.model(x[None]).softmax(-1)[0, y]
        w1, b1, w2, b2 = torch.autograd.grad((p / (1 - p)).log(), parameters)
        for parameter in parameters:
            parameter.requires_grad_(False)
        blocks = [torch.cat([w, b[:, None]], 1).flatten() for w, b in ((w1, b1), (w2, b2))]
        found.append(torch.cat(blocks).numpy())
    return np.stack(found) @ sketch_matrix(number, len(found[0]))


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("n_models", [1, 3])
def test_formula(ridge, n_models):
    models, examples, queries = [small_classifier(seed) for seed in range(n_models)], table(20, 1), table(3, 2)
    terms = []
    for number, model in enumerate(models):
        phi = features(model, examples, number)
        kernel = phi.T @ phi + ridge * np.eye(DIMENSIONS)
        terms.append(features(model, queries, number) @ np.linalg.inv(kernel) @ phi.T)
    doubts = np.mean([1 - chances(model, examples) for model in models], axis=0)
    expected = np.mean(terms, axis=0) * doubts
    method = TRAK(DIMENSIONS, ridge=ridge, seed=SEED).fit(models, examples)
    np.testing.assert_allclose(method.score(queries), expected, rtol=1e-8, atol=1e-12)


def test_language_model_takes_the_mean_loss_of_a_token(model_in_float64):
    model, examples = FrozenModel(model_in_float64("gpt2")), texts(6, 1)
    method = TRAK(4, ridge=1e-12).fit([model], examples)
    single = method.score(examples)
    assert single.shape == (6, 6)
    (fitted,) = method.fitted
    # Perplexity of a row by itself: exp of its mean loss over the targets.
    for number, row in enumerate(examples.rows):
        tokens = torch.from_numpy(row)[None]
        log_p = model.model(input_ids=tokens).logits[0].log_softmax(-1)
        own = [log_p[place - 1, tokens[0, place]].item() for place in range(2, len(row))]
        assert fitted.doubts[number] == pytest.approx(1 - np.exp(np.mean(own)), rel=1e-10)


def test_what_is_refused():
    examples = table(5, 1)
    with pytest.raises(ValueError, match="5 examples.*7 dimensions.*ridge"):
        TRAK(7).fit([small_classifier()], examples)
    with pytest.raises(ValueError, match="fit the method"):
        TRAK(7).score(examples)


def test_features_are_gradients_of_the_loss_over_the_doubt():
    """phi is minus the gradient of the loss over 1 - p."""
    model, examples = small_classifier(), table(4, 1)
    expected = -dense_rows(model, examples) / (1 - chances(model, examples))[:, None]
    np.testing.assert_allclose(features(model, examples, 0), expected @ sketch_matrix(0, 64), rtol=1e-8)
