"""Semivalues: their axioms over drawn games, and the definitions by enumeration."""

from math import gamma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_chances, size_weights
from tests.reference.games import shapley_by_orders, table_game, values_by_subsets

SEMIVALUES = [
    ("shapley", 1.0, 1.0),
    ("banzhaf", 1.0, 1.0),
    ("beta", 4.0, 1.0),
    ("beta", 1.0, 4.0),
    ("beta", 2.0, 3.0),
    ("leave_one_out", 1.0, 1.0),
]
several = pytest.mark.parametrize("semivalue", SEMIVALUES)
games = st.tuples(st.integers(1, 7), st.integers(0, 3), st.integers(0, 2**32 - 1))


def drawn(game):
    n, queries, seed = game
    generator = np.random.default_rng(seed)
    return n, generator.normal(0, 1, (2**n, queries)), generator


def values(worth, semivalue):
    n = int(np.log2(len(worth)))
    masks = all_coalitions(n)
    return exact_semivalues(masks, table_game(worth)(masks), size_weights(n, *semivalue))


def without(n, player):
    """Numbers of the coalitions without a player."""
    return np.flatnonzero(np.arange(2**n) >> player & 1 == 0)


@given(games)
@settings(deadline=None, max_examples=40)
def test_efficiency_of_shapley(game):
    _, worth, _ = drawn(game)
    assert values(worth, ("shapley",)).sum(axis=1) == pytest.approx(worth[-1] - worth[0], abs=1e-9)


@several
@given(game=games)
@settings(deadline=None, max_examples=20)
def test_a_null_player_gets_nothing_and_a_dummy_its_own(semivalue, game):
    n, worth, generator = drawn(game)
    player = int(generator.integers(n))
    apart = without(n, player)
    worth[apart | 1 << player] = worth[apart] + 0.75
    assert values(worth, semivalue)[:, player] == pytest.approx(0.75, abs=1e-9)
    worth[apart | 1 << player] = worth[apart]
    assert values(worth, semivalue)[:, player] == pytest.approx(0.0, abs=1e-9)


@several
@given(game=games)
@settings(deadline=None, max_examples=20)
def test_symmetry_of_names(semivalue, game):
    n, worth, generator = drawn(game)
    names = generator.permutation(n)
    renamed = (all_bits(n) @ (1 << names)).astype(int)
    other = np.empty_like(worth)
    other[renamed] = worth
    assert values(other, semivalue)[:, names] == pytest.approx(values(worth, semivalue), abs=1e-9)


@several
@given(game=games)
@settings(deadline=None, max_examples=20)
def test_duplicates_get_the_same(semivalue, game):
    n, worth, _ = drawn(game)
    if n < 2:
        return
    # The second stands in for the first: either alone is worth what the other is, both together what one is.
    either = (np.arange(2**n) & 3 > 0).astype(int) | (np.arange(2**n) & ~3)
    found = values(worth[either], semivalue)
    assert found[:, 0] == pytest.approx(found[:, 1], abs=1e-9)


@several
@given(game=games, factor=st.floats(-3, 3))
@settings(deadline=None, max_examples=20)
def test_linearity(semivalue, game, factor):
    _, worth, generator = drawn(game)
    other = generator.normal(0, 1, worth.shape)
    expected = values(worth, semivalue) + factor * values(other, semivalue)
    assert values(worth + factor * other, semivalue) == pytest.approx(expected, abs=1e-9)


@given(games)
@settings(deadline=None, max_examples=20)
def test_shapley_by_orders(game):
    _, worth, _ = drawn(game)
    assert values(worth, ("shapley",)) == pytest.approx(shapley_by_orders(worth), abs=1e-9)


@given(games)
@settings(deadline=None, max_examples=15)
def test_banzhaf_and_leave_one_out_by_subsets(game):
    _, worth, _ = drawn(game)
    assert values(worth, ("banzhaf",)) == pytest.approx(values_by_subsets(worth, [(0.5, 1.0)]), abs=1e-9)
    assert values(worth, ("leave_one_out",)) == pytest.approx(values_by_subsets(worth, [(1.0, 1.0)]), abs=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), [(4.0, 1.0), (1.0, 4.0), (2.0, 3.0)])
@given(game=games)
@settings(deadline=None, max_examples=8)
def test_beta_by_subsets(alpha, beta, game):
    _, worth, _ = drawn(game)
    nodes, widths = np.polynomial.legendre.leggauss(12)
    t = (nodes + 1) / 2
    density = t ** (beta - 1) * (1 - t) ** (alpha - 1) * gamma(alpha + beta) / gamma(alpha) / gamma(beta)
    expected = values_by_subsets(worth, list(zip(t, density * widths / 2, strict=True)))
    assert values(worth, ("beta", alpha, beta)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 7, 40, 900])
def test_beta_of_one_and_one_is_shapley(n):
    assert size_weights(n, "beta", 1.0, 1.0) == pytest.approx(size_weights(n, "shapley"), rel=1e-9)


@several
@pytest.mark.parametrize("n", [1, 2, 7, 40, 900])
def test_chances_add_up(semivalue, n):
    assert size_chances(size_weights(n, *semivalue)).sum() == pytest.approx(1.0, rel=1e-9)


def test_weights_too_small_for_float64_are_refused():
    with pytest.raises(ValueError, match="add up to 1"):
        size_chances(size_weights(3000, "banzhaf"))


def all_bits(n):
    return np.arange(2**n)[:, None] >> np.arange(n) & 1
