"""The linear datamodeling score against scipy, its errors and its ceiling against simulations."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from dataworth.tasks.counterfactual.lds import ceiling, difference, lds, predicted, rank_correlations


def test_correlations_are_scipys():
    generator = np.random.default_rng(0)
    one, two = generator.integers(0, 6, (4, 20)).astype(float), generator.normal(size=(4, 20))
    expected = [spearmanr(a, b).statistic for a, b in zip(one, two, strict=True)]
    np.testing.assert_allclose(rank_correlations(one, two), expected, rtol=1e-12)


def test_a_prediction_that_says_nothing_has_no_correlation():
    assert rank_correlations(np.ones((1, 5)), np.arange(5.0)[None]).tolist() == [0.0]


def test_predictions_add_up_members():
    scores, masks = np.arange(6.0).reshape(2, 3), np.array([[True, False, True], [False, False, False]])
    assert predicted(scores, masks).tolist() == [[2.0, 0.0], [8.0, 0.0]]


def test_leaving_a_subset_out_is_as_if_it_had_not_been_drawn():
    generator = np.random.default_rng(4)
    one, two = generator.integers(0, 5, (3, 12)).astype(float), generator.integers(0, 5, (3, 12)).astype(float)
    expected = [rank_correlations(np.delete(one, m, 1), np.delete(two, m, 1)) for m in range(12)]
    np.testing.assert_allclose(lds(one, two).without, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("n_subsets", [0, 1, 2])
def test_too_few_subsets(n_subsets):
    with pytest.raises(ValueError, match="at least 3 subsets"):
        lds(np.zeros((2, n_subsets)), np.zeros((2, n_subsets)))


def test_one_seed_has_no_ceiling():
    with pytest.raises(ValueError, match="at least 2 seeds"):
        ceiling(np.zeros((1, 2, 5)))


def experiment(generator, q, m, noise=1.0, error=1.0, n_seeds=3):
    """Expected outcomes, noisy ones of some seeds, and two predictions that share most of their error.

    Queries differ in how predictable they are, and subsets in what they do to all queries.
    """
    expected = generator.normal(size=(q, m)) + generator.normal(size=m)
    outcomes = expected + noise * generator.normal(size=(n_seeds, q, m))
    shared = error * np.exp(0.5 * generator.normal(size=(q, 1))) * generator.normal(size=(q, m))
    common = error * generator.normal(size=m)
    predictions = [expected + shared + common + 0.3 * generator.normal(size=(q, m)) for _ in range(2)]
    return expected, outcomes, predictions


def test_standard_errors_are_the_scatter_of_repeated_experiments():
    generator = np.random.default_rng(1)
    means, errors, differences, paired = [], [], [], []
    for _ in range(300):
        _, outcomes, (one, two) = experiment(generator, 12, 30)
        truth = outcomes.mean(axis=0)
        first, second = lds(one, truth), lds(two, truth)
        means.append(first.mean)
        errors.append(first.standard_error)
        differences.append(difference(first, second).mean)
        paired.append(difference(first, second).standard_error)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.25)
    assert np.sqrt(np.mean(np.square(errors))) > 0.95 * np.std(means)
    # Counting what both causes share twice, the error of a difference is too large rather than too small.
    assert 0.95 < np.sqrt(np.mean(np.square(paired))) / np.std(differences) < 1.6
    assert np.std(differences) < 0.5 * np.std(means)


@pytest.mark.parametrize(("noise", "n_seeds"), [(0.5, 2), (1.5, 3), (3.0, 5)])
def test_the_ceiling_is_what_the_expectation_reaches(noise, n_seeds):
    generator = np.random.default_rng(2)
    reached, claimed = [], []
    for _ in range(40):
        expected, outcomes, _ = experiment(generator, 20, 60, noise=noise, n_seeds=n_seeds)
        reached.append(lds(expected, outcomes.mean(axis=0)).mean)
        claimed.append(ceiling(outcomes).mean)
    assert np.mean(claimed) == pytest.approx(np.mean(reached), abs=0.02)


def test_seeds_that_agree_have_the_ceiling_one():
    outcomes = np.repeat(np.random.default_rng(3).normal(size=(1, 4, 10)), 2, axis=0)
    found = ceiling(outcomes)
    assert found.mean == pytest.approx(1.0)
    assert found.standard_error == pytest.approx(0.0, abs=1e-9)
