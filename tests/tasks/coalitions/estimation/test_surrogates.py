"""A few measured coalitions and other games taken off: no bias whatever these are, less error where they are good."""

import numpy as np
import pytest

from dataworth.tasks.coalitions.estimation.designs import all_coalitions, paired_chances, paired_in_strata
from dataworth.tasks.coalitions.estimation.estimators import with_total
from dataworth.tasks.coalitions.estimation.reuse import sample_reuse
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from dataworth.tasks.coalitions.estimation.surrogates import EnumeratedSurrogate, surrogate_reuse

N, Q = 8, 5
EVERYTHING = all_coalitions(N)
SHAPLEY = size_weights(N, "shapley")


def saturating(generator):
    """A game like those of trainings: sources stand in for each other, a little synergy; and what each is good for."""
    sizes = np.exp(generator.normal(0, 1, N))
    good = np.abs(generator.normal(0, 1, (Q, N))) * np.sqrt(sizes)
    together = generator.normal(0, 0.01, (Q, N, N))
    members = EVERYTHING.astype(float)
    utilities = 2 * np.sqrt(members @ (good**2).T) + 0.1 * np.log1p(members @ sizes)[:, None]
    utilities += np.einsum("mi,mj,qij->mq", members, members, together)
    return utilities, sizes, good


def surrogates_of(sizes, good, generator):
    """By size, by additive and by saturating guesses that are off by half."""
    guessed, members = good * np.exp(generator.normal(0, 0.5, good.shape)), EVERYTHING.astype(float)
    return [
        EnumeratedSurrogate(np.repeat(np.log1p(members @ sizes)[:, None], Q, axis=1)),
        EnumeratedSurrogate(members @ guessed.T),
        EnumeratedSurrogate(1.5 * np.sqrt(members @ (guessed**2).T)),
    ]


def drawn(n_coalitions, generator):
    ends = np.stack([np.zeros(N, bool), np.ones(N, bool)])
    return np.concatenate([ends, paired_in_strata(N, n_coalitions // 2 - 1, paired_chances(SHAPLEY), generator)])


def test_a_surrogate_knows_its_coalitions_and_its_values():
    utilities, _, _ = saturating(np.random.default_rng(0))
    surrogate = EnumeratedSurrogate(utilities)
    order = np.random.default_rng(1).permutation(len(EVERYTHING))
    np.testing.assert_array_equal(surrogate.utilities(EVERYTHING[order]), utilities[order])
    np.testing.assert_allclose(surrogate.values(SHAPLEY), exact_semivalues(EVERYTHING, utilities, SHAPLEY))


def test_a_surrogate_that_is_right_leaves_no_error():
    generator = np.random.default_rng(2)
    utilities, *_ = saturating(generator)
    same = EnumeratedSurrogate(3 * utilities + 7)  # in another unit
    masks = drawn(10, generator)
    found = surrogate_reuse(masks, EnumeratedSurrogate(utilities).utilities(masks), SHAPLEY, [same])
    expected = exact_semivalues(EVERYTHING, utilities, SHAPLEY)
    np.testing.assert_allclose(found.values, np.vstack([expected, expected.sum(axis=0)]), rtol=1e-6)
    assert found.standard_errors.max() < 1e-6 * np.abs(found.values).max()


@pytest.mark.parametrize("helpful", [True, False])
def test_there_is_no_bias_and_values_add_up(helpful):
    generator = np.random.default_rng(3)
    utilities, sizes, good = saturating(generator)
    game, truth = EnumeratedSurrogate(utilities), exact_semivalues(EVERYTHING, utilities, SHAPLEY)
    others = surrogates_of(sizes, good if helpful else good[:, ::-1], generator)
    estimates = []
    for _ in range(120):
        masks = drawn(12, generator)
        values = surrogate_reuse(masks, game.utilities(masks), SHAPLEY, others).values[:-1]
        np.testing.assert_allclose(values.sum(axis=1), utilities[EVERYTHING.all(axis=1)][0] - utilities[0], rtol=1e-9)
        estimates.append(values)
    error = np.std(estimates, axis=0, ddof=1) / np.sqrt(len(estimates))
    assert (np.abs(np.mean(estimates, axis=0) - truth) <= 4.5 * error).all()


@pytest.mark.parametrize(("n_coalitions", "at_most"), [(8, 0.7), (16, 0.5), (32, 0.25)])
def test_errors_are_a_part_of_those_without_and_intervals_cover(n_coalitions, at_most):
    generator = np.random.default_rng(4)
    with_them, without, inside = [], [], []
    for _ in range(25):
        utilities, sizes, good = saturating(generator)
        game, truth = EnumeratedSurrogate(utilities), exact_semivalues(EVERYTHING, utilities, SHAPLEY)
        masks = drawn(n_coalitions, generator)
        measured = game.utilities(masks)
        found = surrogate_reuse(masks, measured, SHAPLEY, surrogates_of(sizes, good, generator), 0.9)
        truth = np.vstack([truth, truth.sum(axis=0)])
        with_them.append(np.abs(found.values - truth).mean())
        without.append(np.abs(with_total(sample_reuse(masks, measured, SHAPLEY).values) - truth).mean())
        inside.append(((found.low <= truth) & (truth <= found.high)).mean())
    assert np.mean(with_them) < at_most * np.mean(without)
    assert 0.83 <= np.mean(inside) <= 0.97


def test_nothing_measured_but_the_ends_is_the_surrogates_alone():
    generator = np.random.default_rng(5)
    utilities, sizes, good = saturating(generator)
    masks = drawn(2, generator)
    others = surrogates_of(sizes, good, generator)
    found = surrogate_reuse(masks, EnumeratedSurrogate(utilities).utilities(masks), SHAPLEY, others)
    assert np.isnan(found.standard_errors).all()
    total = utilities[EVERYTHING.all(axis=1)][0] - utilities[0]
    np.testing.assert_allclose(found.values.sum(axis=1), [*total, total.sum()])


@pytest.mark.parametrize("pairs", [1, 5, 40])
def test_sizes_come_as_evenly_as_the_pairs_allow(pairs):
    chances = paired_chances(SHAPLEY)
    masks = paired_in_strata(N, pairs, chances, np.random.default_rng(0))
    assert (masks[::2] ^ masks[1::2]).all()
    counts = np.bincount(masks[::2].sum(axis=1), minlength=N)[1:]
    assert (np.abs(counts - pairs * chances) < 1.5).all()
    more = paired_in_strata(N, pairs + 3, chances, np.random.default_rng(0))
    np.testing.assert_array_equal(more[: 2 * pairs], masks)
