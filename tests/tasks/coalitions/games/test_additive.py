"""The additive game: its Shapley value by enumeration, shares, and intervals that cover."""

from itertools import permutations

import numpy as np
import pytest

from dataworth.tasks.coalitions.games.additive import interval, standard_errors
from dataworth.tasks.coalitions.valuation import shares


def shapley_by_enumeration(utility, n_players):
    values = np.zeros(n_players)
    orders = list(permutations(range(n_players)))
    for order in orders:
        inside = frozenset()
        for player in order:
            values[player] += utility(inside | {player}) - utility(inside)
            inside |= {player}
    return values / len(orders)


def test_a_sources_sum_is_its_shapley_value():
    scores = {0: [1.0, -2.0], 1: [0.5], 2: [], 3: [3.0, 0.25, 1.0]}
    values = shapley_by_enumeration(lambda members: sum(sum(scores[player]) for player in members), 4)
    assert values == pytest.approx([sum(own) for own in scores.values()])


def test_shares():
    found = shares(np.array([[3.0, 1.0, -2.0], [0.0, -1.0, 0.0]]))
    assert found[0].tolist() == [0.75, 0.25, 0.0]
    assert np.isnan(found[1]).all()


def test_standard_error_is_that_of_the_sum():
    scores = np.array([1.0, 4.0, -2.0, 0.5])
    errors = standard_errors(np.array([[scores.sum(), 7.0]]), np.array([[(scores**2).sum(), 49.0]]), np.array([4, 1]))
    assert errors[0, 0] == pytest.approx(np.sqrt(4) * scores.std(ddof=1))
    assert np.isnan(errors[0, 1])


def test_intervals_cover_the_expected_sum_as_often_as_they_say():
    generator = np.random.default_rng(0)
    n, trials, inside = 30, 2000, 0
    for _ in range(trials):
        scores = generator.exponential(1.0, n) - 0.5
        sums, squares = np.array([[scores.sum()]]), np.array([[(scores**2).sum()]])
        errors = standard_errors(sums, squares, np.array([n]))
        low, high = interval(sums, errors, np.array([n]), 0.95)
        inside += bool(low[0, 0] <= 0.5 * n <= high[0, 0])
    assert 0.91 <= inside / trials <= 0.97
