"""TracIn over checkpoints against the written-out sum."""

import numpy as np
import pytest

from dataworth.tasks.attribution.tracin import TracIn
from dataworth.tasks.projection.config import ProjectionConfig
from tests.reference.in_memory import FrozenModel, dense_rows, small_classifier, table, texts


def test_sum_over_checkpoints():
    models, rates = [small_classifier(seed) for seed in range(3)], [0.3, 0.2, 0.1]
    examples, queries = table(12, 1), table(3, 2)
    expected = sum(
        rate * dense_rows(model, queries) @ dense_rows(model, examples).T
        for rate, model in zip(rates, models, strict=True)
    )
    found = TracIn(rates).fit(models, examples).score(queries)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)


def test_rates_of_one_and_a_wide_projection_change_nothing():
    models, examples, queries = [small_classifier(seed) for seed in range(2)], table(6, 1), table(2, 2)
    expected = TracIn([1, 1]).fit(models, examples).score(queries)
    np.testing.assert_allclose(TracIn().fit(models, examples).score(queries), expected, rtol=1e-12)
    wide = TracIn(projection=ProjectionConfig(rank=100)).fit(models, examples).score(queries)
    np.testing.assert_allclose(wide, expected, rtol=1e-12)
    narrow = TracIn(projection=ProjectionConfig(rank=3)).fit(models, examples).score(queries)
    assert np.corrcoef(narrow.ravel(), expected.ravel())[0, 1] < 1


def test_language_model(model_in_float64):
    model, examples, queries = FrozenModel(model_in_float64("gpt2")), texts(5, 1), texts(2, 2)
    found = TracIn([2.0]).fit([model], examples).score(queries)
    assert found.shape == (2, 5)
    own = TracIn().fit([model], queries).score(queries)
    assert (np.diagonal(own) > 0).all()


def test_what_is_refused():
    with pytest.raises(ValueError, match="2 checkpoints need as many rates, got 1"):
        TracIn([0.1]).fit([small_classifier(), small_classifier(1)], table(3, 1))
    with pytest.raises(ValueError, match="pca"):
        TracIn(projection=ProjectionConfig(kind="pca"))
    with pytest.raises(ValueError, match="fit the method"):
        TracIn().score(table(3, 1))
