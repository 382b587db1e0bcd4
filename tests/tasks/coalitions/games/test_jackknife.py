"""The jackknife over groups of documents against classical errors of sums, and its coverage over drawn documents."""

import numpy as np
import pytest

from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.games.additive import standard_errors
from dataworth.tasks.coalitions.games.source_game import NothingKept
from dataworth.tasks.coalitions.games.sums_game import MAX_REPLAYED, game_on
from dataworth.tasks.coalitions.uncertainty.jackknife import degrees_of_freedom, jackknife_errors, replicate_scales
from tests.reference.drawn_sources import DrawnSources

GAMES = ["path", "interaction", "newton"]


def valued(play, **config):
    """A game with all its errors."""
    return game_on(play, SourcesConfig(**config), NothingKept()).valuation()


@pytest.mark.parametrize("n_sources", [1, 3])
def test_groups_of_one_document_give_the_classical_error_of_a_sum(n_sources):
    scores = np.random.default_rng(0).standard_normal((n_sources, 12))
    counts = np.ones((n_sources, 12), int)
    kept, dropped = replicate_scales(counts)
    replicates = kept * scores.sum(axis=1) - dropped * scores.T
    expected = standard_errors(scores.sum(axis=1)[None], (scores**2).sum(axis=1)[None], np.full(n_sources, 12))
    np.testing.assert_allclose(jackknife_errors(replicates[:, None], counts), expected, rtol=1e-12)
    assert degrees_of_freedom(counts).tolist() == [11] * n_sources


@pytest.mark.parametrize("n_documents", [2, 3, 5])
def test_empty_groups_change_no_error_of_a_sum(n_documents):
    scores = np.zeros((1, 5))
    scores[0, :n_documents] = np.random.default_rng(1).standard_normal(n_documents)
    counts = np.array([[1] * n_documents + [0] * (5 - n_documents)])
    kept, dropped = replicate_scales(counts)
    errors = jackknife_errors((kept * scores.sum(axis=1) - dropped * scores.T)[:, None], counts)
    expected = np.sqrt(n_documents) * scores[0, :n_documents].std(ddof=1)
    np.testing.assert_allclose(errors, expected, rtol=1e-12)
    assert degrees_of_freedom(counts).tolist() == [n_documents - 1]


def test_errors_are_unbiased_whatever_the_sizes_of_groups():
    generator = np.random.default_rng(2)
    counts = np.array([[3, 2, 2, 2, 2], [40, 1, 5, 0, 0]])
    kept, dropped = replicate_scales(counts)
    sums = generator.standard_normal((20000, *counts.shape)) * np.sqrt(counts)
    replicates = kept[:, None] * sums.sum(axis=2) - dropped[:, None] * sums.transpose(2, 0, 1)
    variances = 4 / 5 * ((replicates - sums.sum(axis=2)) ** 2).sum(axis=0).mean(axis=0)
    np.testing.assert_allclose(variances, counts.sum(axis=1), rtol=0.04)


def test_a_source_of_one_group_has_no_error_and_stays_as_it_is():
    counts = np.array([[4, 0, 0], [1, 1, 1], [0, 0, 0]])
    kept, dropped = replicate_scales(counts)
    np.testing.assert_array_equal(kept[:, [0, 2]], 1)
    np.testing.assert_array_equal(dropped[:, [0, 2]], 0)
    errors = jackknife_errors(np.ones((3, 2, 3)), counts)
    assert np.isnan(errors).tolist() == [[True, False, True]] * 2
    assert degrees_of_freedom(counts).tolist() == [0, 2, 0]


def test_a_replicate_is_the_rest_of_every_source_scaled_up():
    generator = np.random.default_rng(3)
    drawn = DrawnSources(generator, n_documents=15)
    documents = drawn.documents(generator)
    groups = drawn.of_documents(documents, 5).sums.groups
    drawn.n_documents = 12
    for number in range(5):
        rest = np.arange(15) % 5 != number
        left = [(gradients[:, rest] * 15 / 12, rows[:, rest] * np.sqrt(15 / 12)) for gradients, rows in documents]
        expected = drawn.of_documents(left, 1)
        for found, layer in zip(groups.replicate(number), expected.sums.layers, strict=True):
            np.testing.assert_allclose(found.gradients, layer.gradients, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(found.curvatures, layer.curvatures, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("game", GAMES)
def test_groups_change_no_value(game):
    generator = np.random.default_rng(4)
    drawn = DrawnSources(generator, n_documents=10)
    documents = drawn.documents(generator)
    whole = valued(drawn.of_documents(documents, 1), game=game)
    assert "documents" not in whole.causes
    assert "--sources.document_groups" in whole.facts["errors"]
    for n_groups in (2, 5, 10):
        found = valued(drawn.of_documents(documents, n_groups), game=game)
        np.testing.assert_allclose(found.values, whole.values, rtol=1e-12)
        assert np.isfinite(found.causes["documents"]).all()


@pytest.mark.parametrize("game", GAMES)
def test_causes_add_up_in_quadrature(game):
    generator = np.random.default_rng(5)
    drawn = DrawnSources(generator, n_documents=10)
    found = valued(drawn.of_documents(drawn.documents(generator), 5), game=game)
    assert set(found.causes) == {"coalitions", "documents", "queries"}
    squares = sum(np.nan_to_num(errors) ** 2 for errors in found.causes.values())
    np.testing.assert_allclose(found.errors, np.sqrt(squares))
    assert np.isnan(found.causes["queries"][:-1]).all()
    assert (found.low < found.values).all()
    assert (found.high > found.values).all()


@pytest.mark.parametrize(("game", "semivalue"), [("newton", "shapley"), ("newton", "beta"), ("interaction", "banzhaf")])
def test_sampled_coalitions_are_the_same_in_every_replicate(game, semivalue):
    generator = np.random.default_rng(6)
    drawn = DrawnSources(generator, n_documents=10)
    play = drawn.of_documents(drawn.documents(generator), 5)
    exact = valued(play, game=game, semivalue=semivalue, alpha=2)
    few = valued(play, game=game, semivalue=semivalue, alpha=2, budget=7, tolerance=0.9)
    assert few.facts["ended by"] != "exact"
    ratio = few.causes["documents"] / exact.causes["documents"]
    assert 0.3 < ratio.min() < ratio.max() < 3
    assert np.isfinite(few.causes["coalitions"]).all()


def test_errors_of_documents_that_would_take_too_long_are_left_out_and_it_is_said(monkeypatch):
    generator = np.random.default_rng(7)
    drawn = DrawnSources(generator, n_documents=10)
    play = drawn.of_documents(drawn.documents(generator), 5)
    monkeypatch.setattr("dataworth.tasks.coalitions.games.sums_game.MAX_REPLAYED", 39)
    found = valued(play, game="newton")
    assert "documents" not in found.causes
    assert "5 times 8 coalitions" in found.facts["errors"]
    assert np.isfinite(valued(play, game="path").causes["documents"]).all()
    assert MAX_REPLAYED >= 5 * 2000


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES)
def test_intervals_cover_the_value_of_the_population(game):
    generator = np.random.default_rng(8)
    drawn = DrawnSources(generator, n_documents=40)
    truth = valued(drawn.of_population(), game=game).values[:-1]
    covered = []
    for _ in range(200):
        found = valued(drawn.of_documents(drawn.documents(generator), 5), game=game)
        covered.append((found.low[:-1] <= truth) & (truth <= found.high[:-1]))
    assert 0.90 <= np.mean(covered) <= 0.98
    assert np.mean(covered, axis=0).min() >= 0.88
