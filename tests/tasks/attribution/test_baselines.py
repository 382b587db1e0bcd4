"""Baselines against what they are by definition."""

import numpy as np
import pytest
import torch

from dataworth.tasks.attribution.baselines import EmbeddingSimilarity, RandomScores, TargetCount
from tests.reference.in_memory import FrozenModel, small_classifier, table, texts


def cosine(a, b):
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def test_a_classifiers_embedding_is_what_its_last_layer_reads():
    model, examples, queries = small_classifier(), table(9, 1), table(3, 2)

    def hidden(rows):
        return torch.tanh(model.model[0](rows.inputs)).numpy()

    found = EmbeddingSimilarity().fit([model], examples).score(queries)
    np.testing.assert_allclose(found, cosine(hidden(queries), hidden(examples)), rtol=1e-10)
    two = EmbeddingSimilarity().fit([model, small_classifier(1)], examples).score(queries)
    other = EmbeddingSimilarity().fit([small_classifier(1)], examples).score(queries)
    np.testing.assert_allclose(two, (found + other) / 2, rtol=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "bert classifier"])
def test_a_checkpoints_embedding_is_the_mean_state_of_its_tokens(model_in_float64, name):
    network, examples, queries = model_in_float64(name), texts(6, 1), texts(2, 2)

    def hidden(rows):
        states = [network.base_model(torch.from_numpy(row)[None]).last_hidden_state[0].mean(0) for row in rows.rows]
        return torch.stack(states).numpy()

    found = EmbeddingSimilarity().fit([FrozenModel(network)], examples).score(queries)
    np.testing.assert_allclose(found, cosine(hidden(queries), hidden(examples)), rtol=1e-8)


def test_size():
    examples = texts(6, 1)
    found = TargetCount().fit([], examples).score(texts(2, 2))
    np.testing.assert_array_equal(found, np.tile(examples.lengths - 2, (2, 1)))
    np.testing.assert_array_equal(TargetCount().fit([], table(4, 1)).score(table(2, 2)), np.ones((2, 4)))


def test_random():
    examples, queries = table(500, 1), table(20, 2)
    found = RandomScores(seed=3).fit([], examples).score(queries)
    np.testing.assert_array_equal(found, RandomScores(seed=3).fit([], examples).score(queries))
    assert not np.allclose(found, RandomScores(seed=4).fit([], examples).score(queries))
    assert abs(found.mean()) < 0.05
    assert found.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("method", [EmbeddingSimilarity(), TargetCount(), RandomScores()])
def test_fitted_first(method):
    with pytest.raises(ValueError, match="fit the method"):
        method.score(table(2, 2))
