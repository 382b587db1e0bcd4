"""What if a source were absent or split: by exact enumeration where worth saturates, and where it adds up."""

import numpy as np
import pytest

from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.coalitions.estimation.estimators import Estimate, exact
from dataworth.tasks.coalitions.estimation.semivalues import size_weights
from dataworth.tasks.coalitions.games.additive import AdditiveGame
from dataworth.tasks.coalitions.games.portions import PortionedGame, all_but, divided
from dataworth.tasks.coalitions.games.second_order import InteractionGame
from dataworth.tasks.coalitions.payout.what_if import mean_estimate, shares_without, split_gain
from dataworth.tasks.coalitions.valuation import shares


class Saturating:
    """Worth grows ever more slowly, for two queries that look at the sums differently."""

    weights = np.array([[1.0, 0.2], [0.3, 1.0]])

    def __init__(self, sums):
        self.sums, self.n_players = sums, len(sums)

    def utilities(self, masks):
        return np.log1p(masks.astype(float) @ self.sums @ self.weights)


def shapley(game):
    masks = all_coalitions(game.n_players)
    return exact(masks, game.utilities(masks), size_weights(game.n_players, "shapley"))


def gain(game, source, parts):
    portions = divided(game.n_players, source, parts)
    return split_gain(shapley(game), shapley(PortionedGame(game, portions)), source)


@pytest.fixture
def sums():
    return np.random.default_rng(3).exponential(2.0, (5, 2))


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_where_worth_saturates_a_split_source_is_paid_more(sums, parts):
    for source in range(len(sums)):
        found = gain(Saturating(sums), source, parts)
        apart = np.concatenate([np.delete(sums, source, axis=0), np.repeat(sums[[source]] / parts, parts, axis=0)])
        expected = shapley(Saturating(apart)).values[:, len(sums) - 1 :].sum(axis=1)
        assert (found.gain > 0).all()
        np.testing.assert_allclose(found.in_parts, expected, rtol=1e-9)
        np.testing.assert_allclose(found.relative, found.in_parts / found.whole - 1)
        np.testing.assert_array_equal(found.reach, 0)


def test_more_parts_gain_more(sums):
    gains = [gain(Saturating(sums), 1, parts).gain for parts in (1, 2, 4, 8)]
    np.testing.assert_array_equal(gains[0], 0.0)
    assert (np.diff(gains, axis=0) > 0).all()


@pytest.mark.parametrize("parts", [2, 4])
def test_a_split_gains_nothing_in_additive_and_quadratic_games(sums, parts):
    generator = np.random.default_rng(0)
    quadratic = InteractionGame(generator.standard_normal((2, 5)), generator.standard_normal((2, 3, 5)))
    for game in (AdditiveGame(sums.T), quadratic):
        found = gain(game, 2, parts)
        np.testing.assert_allclose(found.in_parts, found.whole, rtol=1e-9)
        np.testing.assert_array_equal(found.gain, 0.0)
        np.testing.assert_array_equal(found.relative, 0.0)


def test_a_value_of_nothing_has_no_relative_gain():
    found = gain(AdditiveGame(np.array([[0.0, 1.0]])), 0, 2)
    assert np.isnan(found.relative).all()
    assert (found.gain == 0).all()


@pytest.mark.parametrize("absent", [[1], [4, 0], [2, 3, 4]])
def test_shares_without_sources(sums, absent):
    found = shares_without(shapley(PortionedGame(Saturating(sums), all_but(5, absent))), absent)
    assert found.shares.shape == (2, 5)
    assert (found.shares[:, absent] == 0).all()
    np.testing.assert_allclose(found.shares.sum(axis=1), 1.0)
    left = shares(shapley(Saturating(np.delete(sums, absent, axis=0))).values)
    np.testing.assert_allclose(np.delete(found.shares, absent, axis=1), left, rtol=1e-12)
    np.testing.assert_array_equal(found.low, found.shares)
    np.testing.assert_array_equal(found.high, found.shares)


def test_a_copy_gains_what_its_twin_had():
    twins = Saturating(np.array([[2.0, 1.0], [2.0, 1.0], [1.0, 3.0]]))
    before = shares(shapley(twins).values)
    after = shares_without(shapley(PortionedGame(twins, all_but(3, [0]))), [0]).shares
    assert (after[:, 1] > before[:, 1]).all()
    np.testing.assert_allclose(before[:, 0], before[:, 1])


def test_intervals_of_sampled_values():
    values, reach = np.array([[3.0, -1.0, 1.0]]), np.array([[1.0, 0.5, 2.0]])
    others = Estimate(values, reach / 2, values - reach, values + reach, 20, "permutation")
    found = shares_without(others, [1])
    np.testing.assert_allclose(found.shares, [[0.75, 0, 0, 0.25]])
    np.testing.assert_allclose(found.low, [[0.5, 0, 0, 0]])
    np.testing.assert_allclose(found.high, [[1.0, 0, 0, 0.75]])
    whole = Estimate(values[:, :2], reach[:, :2], values[:, :2] - 0.25, values[:, :2] + 0.25, 20, "permutation")
    gained = split_gain(whole, others, 0)
    np.testing.assert_allclose(gained.gain, [1.0])
    np.testing.assert_allclose(gained.reach, [0.25 + 1.0 + 2.0])


def test_nobody_left_has_no_share():
    negative = Estimate(*(-np.ones((1, 2)),) * 4, 4, "exact")
    assert np.isnan(shares_without(negative, [0]).shares[:, 1:]).all()


def test_the_mean_of_checkpoints_is_that_of_values_and_of_gains(sums):
    """Efficiency, splitting: both are linear in the game, so that they are so of the mean of two."""
    games = [Saturating(sums), Saturating(2 * sums[::-1])]
    mean = mean_estimate([shapley(game) for game in games])
    np.testing.assert_allclose(mean.values, (shapley(games[0]).values + shapley(games[1]).values) / 2)
    portions = divided(5, 1, 3)
    in_parts = mean_estimate([shapley(PortionedGame(game, portions)) for game in games])
    gains = [gain(game, 1, 3).gain for game in games]
    np.testing.assert_allclose(split_gain(mean, in_parts, 1).gain, np.mean(gains, axis=0))
    assert mean_estimate([mean]).n_coalitions == mean.n_coalitions
    assert (mean.low <= mean.values).all()
    assert (mean.high >= mean.values).all()
