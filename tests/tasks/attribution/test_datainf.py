"""DataInf against the mean of dense inverses."""

import numpy as np
import pytest
import torch

from dataworth.tasks.attribution.datainf import DataInf
from dataworth.tasks.corpus.examples import TensorExamples
from dataworth.tasks.projection.config import ProjectionConfig
from tests.reference.in_memory import FrozenModel, dense_rows, small_classifier, table, texts

LAYERS = (slice(0, 36), slice(36, 64))


@pytest.mark.parametrize("ratio", [0.1, 2.0])
def test_mean_of_inverses(ratio):
    model, examples, queries = small_classifier(), table(12, 1), table(3, 2)
    g, z = dense_rows(model, queries), dense_rows(model, examples)
    expected = np.zeros((3, 12))
    for columns in LAYERS:
        own = z[:, columns]
        size = own.shape[1]
        damping = ratio * (own**2).sum(axis=1).mean() / size
        inverse = np.mean([np.linalg.inv(np.outer(row, row) + damping * np.eye(size)) for row in own], axis=0)
        expected += g[:, columns] @ inverse @ own.T
    found = DataInf(ratio).fit([model], examples).score(queries)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_a_projection_that_keeps_everything_changes_nothing():
    model, examples, queries = small_classifier(), table(6, 1), table(2, 2)
    wide = DataInf(projection=ProjectionConfig(rank=100)).fit([model], examples).score(queries)
    np.testing.assert_allclose(wide, DataInf().fit([model], examples).score(queries), rtol=1e-10)


def test_language_model(model_in_float64):
    model, examples = FrozenModel(model_in_float64("gpt2"), ("*1.mlp*",)), texts(5, 1)
    found = DataInf().fit([model], examples).score(examples)
    assert (np.diagonal(found) > 0).all()


def test_what_is_refused():
    with pytest.raises(ValueError, match="ratio"):
        DataInf(0.0)
    model = small_classifier()
    with torch.no_grad():
        model.model[2].weight.zero_()
    with pytest.raises(ValueError, match="layer 0.*zero"):
        DataInf().fit([model], TensorExamples(table(3, 1).inputs, table(3, 1).labels))
