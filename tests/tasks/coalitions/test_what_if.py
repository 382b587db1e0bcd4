"""What if a source were absent or split: by exact enumeration where worth saturates, and where it adds up."""

import numpy as np
import pytest

from tasks.coalitions.additive import shares
from tasks.coalitions.what_if import Game, SumsGame, shapley, shares_without, split_gain


def saturating(sums):
    """Worth grows ever more slowly, for two queries that look at the sums differently."""
    weights = np.array([[1.0, 0.2], [0.3, 1.0]])
    return SumsGame(sums, lambda together: np.log1p(together @ weights))


def path_values(game, points=64):
    """Aumann-Shapley: marginal worth of a source's sums along the path from nothing to all, by a closed gradient."""
    places, lengths = np.polynomial.legendre.leggauss(points)
    total, weights = game.sums.sum(axis=0), np.array([[1.0, 0.2], [0.3, 1.0]])
    slopes = sum(
        length / 2 / (1 + (place + 1) / 2 * (total @ weights)) for place, length in zip(places, lengths, strict=True)
    )
    return (game.sums @ weights * slopes).T


@pytest.fixture
def sums():
    return np.random.default_rng(3).exponential(2.0, (5, 2))


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_where_worth_saturates_a_split_source_is_paid_more(sums, parts):
    for source in range(len(sums)):
        found = split_gain(saturating(sums), source, parts)
        assert (found.gain > 0).all()
        np.testing.assert_allclose(found.relative, found.in_parts / found.whole - 1)


def test_more_parts_gain_more(sums):
    gains = [split_gain(saturating(sums), 1, parts).gain for parts in (1, 2, 4, 8)]
    np.testing.assert_allclose(gains[0], 0.0, atol=1e-12)
    assert (np.diff(gains, axis=0) > 0).all()


@pytest.mark.parametrize("parts", [2, 4])
def test_a_split_gains_nothing_in_additive_and_quadratic_games(sums, parts):
    additive = SumsGame(sums, lambda together: together)
    quadratic = SumsGame(sums, lambda together: together - 0.1 * (together**2).sum(axis=1, keepdims=True))
    for game in (additive, quadratic):
        np.testing.assert_allclose(split_gain(game, 2, parts).gain, 0.0, atol=1e-10)
    closed = split_gain(additive, 2, parts, lambda game: game.sums.T)
    np.testing.assert_allclose(closed.gain, 0.0, atol=1e-12)


def test_a_split_gains_nothing_along_the_path(sums):
    game = saturating(sums)
    np.testing.assert_allclose(path_values(game).sum(axis=1), game.utility(np.ones((1, 5), bool))[0], rtol=1e-10)
    np.testing.assert_allclose(split_gain(game, 0, 3, path_values).gain, 0.0, atol=1e-12)


def test_a_split_changes_no_coalition_of_whole_sources(sums):
    game, divided = saturating(sums), saturating(sums).split(1, 3)
    assert isinstance(game, Game)
    assert divided.n_players == 7
    masks = np.random.default_rng(0).random((20, 5)) < 0.5
    spread = np.concatenate([masks, np.repeat(masks[:, 1:2], 2, axis=1)], axis=1)
    np.testing.assert_allclose(divided.utility(spread), game.utility(masks))


def test_shares_without_a_source(sums):
    game = saturating(sums)
    found = shares_without(game, 1)
    assert found.shape == (2, 5)
    assert (found[:, 1] == 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    np.testing.assert_array_equal(np.delete(found, 1, axis=1), shares(shapley(saturating(np.delete(sums, 1, axis=0)))))


def test_a_copy_gains_what_its_twin_had():
    twins = saturating(np.array([[2.0, 1.0], [2.0, 1.0], [1.0, 3.0]]))
    before, after = shares(shapley(twins)), shares_without(twins, 0)
    assert (after[:, 1] > before[:, 1]).all()
    np.testing.assert_allclose(before[:, 0], before[:, 1])


def test_too_many_players_are_refused():
    with pytest.raises(ValueError, match="17 players have too many coalitions"):
        shapley(SumsGame(np.ones((17, 1)), lambda together: together))
