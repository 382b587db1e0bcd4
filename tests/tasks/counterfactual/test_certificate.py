"""Removals that are predicted and measured: what is removed, what is fitted, and intervals that hold."""

import numpy as np
import pytest

from dataworth.tasks.counterfactual.certificate import Certificate, predicted_effects, removals

SOURCES = ["a"] * 30 + ["b"] * 50 + ["c"] * 20


def test_what_is_removed():
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((7, 100))
    scores[:, 80:] += 1
    made = removals(scores, SOURCES, [f"q{n}" for n in range(7)], 11, 0)
    assert made.masks.shape == (11, 100)
    assert made.kinds[0] == "source"
    assert made.names[0] == "c"
    np.testing.assert_array_equal(made.masks[0], np.array(SOURCES) == "c")
    best = [number for number, kind in enumerate(made.kinds) if kind == "best of a query"]
    assert len({made.names[number] for number in best}) == 5
    for number in best:
        row = scores[int(made.names[number][1:])]
        assert set(np.flatnonzero(made.masks[number])) == set(np.argsort(-row)[:5])
    random = made.masks[[kind == "random" for kind in made.kinds]]
    assert random.sum(axis=1).tolist() == [5] * 5
    assert not np.array_equal(random[0], random[1])
    more = removals(scores, SOURCES, [f"q{n}" for n in range(7)], 30, 0)
    np.testing.assert_array_equal(made.masks, more.masks[:11])
    assert more.kinds.count("best of a query") == 7


def test_few_documents_queries_and_one_source():
    made = removals(np.ones((1, 2)), ["a", "a"], ["q"], 5, 1)
    assert made.masks.sum(axis=1).tolist() == [1] * 5
    assert made.kinds == ["best of a query", *["random"] * 4]


def test_predicted_effects_are_sums():
    scores, masks = np.arange(6.0).reshape(2, 3), np.array([[True, False, True], [False, True, False]])
    np.testing.assert_array_equal(predicted_effects(scores, masks), [[2.0, 8.0], [1.0, 4.0]])


def test_a_factor_and_a_dose_that_all_share_are_found_and_leave_nothing():
    generator = np.random.default_rng(0)
    predicted, tokens = generator.standard_normal((12, 5)), generator.integers(10, 90, 12).astype(float)
    made = Certificate(predicted, 3 * predicted + 0.02 * tokens[:, None], tokens)
    assert made.factor == pytest.approx(3)
    assert made.per_token == pytest.approx(0.02)
    assert made.within == pytest.approx(0, abs=1e-9)
    assert made.explained == pytest.approx(1)
    assert made.believed
    assert "of the rest the scores explain 100%" in made.verdict
    np.testing.assert_allclose(made.calibrated(predicted[:, 0], tokens), made.measured[:, 0])
    alone = Certificate(predicted, 0.02 * np.tile(tokens[:, None], 5), tokens)
    assert alone.explained_by_size == pytest.approx(1)
    assert not alone.believed
    assert "The tokens removed explain 100%" in alone.verdict


@pytest.mark.parametrize("confidence", [0.8, 0.9])
def test_intervals_hold_for_a_further_removal(confidence):
    generator = np.random.default_rng(1)
    held, of_query, n = 0, 0, 1500
    for _ in range(n):
        predicted = generator.standard_normal((20, 4)) * generator.exponential(1, (20, 1))
        tokens = generator.integers(10, 90, 20).astype(float)
        noise = generator.standard_t(4, (20, 1)) + 0.5 * generator.standard_normal((20, 4))
        measured = 1.7 * predicted + 0.03 * tokens[:, None] + noise
        made = Certificate(predicted[:-1], measured[:-1], tokens[:-1], confidence)
        missed = measured[-1] - made.calibrated(predicted[-1], tokens[-1])
        held += abs(missed.mean()) <= made.within
        of_query += abs(missed[0]) <= made.within_query
    assert confidence - 0.03 <= held / n <= confidence + 0.06
    assert confidence - 0.04 <= of_query / n <= confidence + 0.06


def test_chance_is_called_chance_as_often_as_it_should():
    generator = np.random.default_rng(2)
    believed = 0
    for _ in range(200):
        predicted, tokens = generator.standard_normal((12, 3)), generator.integers(10, 90, 12).astype(float)
        believed += Certificate(predicted, generator.standard_normal((12, 3)), tokens).believed
    assert believed <= 0.05 * 200 + 3 * np.sqrt(0.05 * 0.95 * 200)


def test_too_few_say_so_and_wrong_signs_are_not_believed():
    generator = np.random.default_rng(2)
    predicted, tokens = generator.standard_normal((8, 3)), np.full(8, 50.0)
    few = Certificate(predicted, predicted, tokens)
    assert few.within is None
    assert "9 removals are needed" in few.verdict
    assert (
        Certificate(
            np.vstack([predicted, predicted[:1]]), np.vstack([predicted, predicted[:1]]), np.full(9, 50.0)
        ).within
        < 1e-9
    )
    wrong = Certificate(predicted, -predicted + 0.1 * generator.standard_normal((8, 3)), tokens)
    assert not wrong.believed
    assert "Do not pay by scores" in wrong.verdict
    assert "say nothing of others" in Certificate(predicted[:3], predicted[:3], tokens[:3]).verdict
    nothing = Certificate(np.zeros((5, 2)), np.zeros((5, 2)), np.full(5, 50.0))
    assert np.isnan(nothing.correlation)
    assert not nothing.believed
    assert nothing.verdict


def test_a_training_that_leads_elsewhere_is_named_first():
    made = Certificate(np.ones((5, 2)), np.ones((5, 2)), np.full(5, 50.0), reason="set training")
    assert made.verdict.startswith("The certificate is of another model: set training. ")
