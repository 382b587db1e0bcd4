"""Estimators: exact where they promise it, right within their errors, intervals that cover as often as they say."""

import numpy as np
import pytest

from dataworth.tasks.coalitions.estimation.designs import (
    all_coalitions,
    antithetic_permutations,
    leave_one_out,
    paired_by_chances,
    paired_chances,
    prefixes,
)
from dataworth.tasks.coalitions.estimation.estimators import exact, permutation, regression
from dataworth.tasks.coalitions.estimation.reuse import adjusted_reuse, sample_reuse
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from tests.reference.games import KINDS, drawn_game, shapley_by_orders, table, table_game

ESTIMATORS = [permutation, regression, sample_reuse, adjusted_reuse]
SEMIVALUES = [
    ("shapley", 1.0, 1.0),
    ("banzhaf", 1.0, 1.0),
    ("beta", 4.0, 1.0),
    ("beta", 1.0, 4.0),
    ("leave_one_out", 1.0, 1.0),
]


def design(estimator, weights, coalitions, generator):
    """About so many coalitions of the design an estimator asks for."""
    n = len(weights)
    if estimator is permutation:
        pairs = max(2, round(coalitions / max(2 * (n - 1), 1)))
        return prefixes(antithetic_permutations(n, pairs, generator))
    ends = np.stack([np.zeros(n, bool), np.ones(n, bool)])
    if n == 1:
        return ends
    return np.concatenate([ends, paired_by_chances(n, int(coalitions) // 2, paired_chances(weights), generator)])


def truth(game, weights):
    masks = all_coalitions(len(weights))
    return exact_semivalues(masks, game(masks), weights)


def coverage(estimator, semivalue, n_games, per_player, seed):
    """Part of all values of drawn games that lie in their 95 % intervals, at 20 to 50 coalitions a player."""
    generator = np.random.default_rng(seed)
    inside = []
    for number in range(n_games):
        n = int(generator.integers(6, 11))
        game, weights = drawn_game(KINDS[number % len(KINDS)], n, generator), size_weights(n, *semivalue)
        masks = design(estimator, weights, n * generator.uniform(*per_player), generator)
        found, values = estimator(masks, game(masks), weights, 0.95), truth(game, weights)
        inside.append(((found.low <= values) & (values <= found.high)).mean())
    return np.mean(inside)


@pytest.mark.parametrize("n", range(1, 8))
def test_exact_is_the_mean_over_orders(n):
    worth = np.random.default_rng(n).normal(0, 1, (2**n, 3))
    masks = all_coalitions(n)
    found = exact(masks, table_game(worth)(masks), size_weights(n, "shapley"))
    assert found.values == pytest.approx(shapley_by_orders(worth), abs=1e-9)
    assert (found.standard_errors == 0).all()
    assert found.n_coalitions == 2**n


def test_leave_one_out_is_exact_from_its_few_coalitions():
    game = drawn_game("root", 7, np.random.default_rng(0))
    masks, weights = leave_one_out(7), size_weights(7, "leave_one_out")
    assert exact(masks, game(masks), weights).values == pytest.approx(truth(game, weights), abs=1e-9)


@pytest.mark.parametrize("rows", [slice(1, None), [0, *range(7)]], ids=["missing", "twice"])
def test_exact_refuses_what_is_not_every_coalition_once(rows):
    masks = all_coalitions(3)[rows]
    with pytest.raises(ValueError, match="each once"):
        exact(masks, np.zeros((len(masks), 1)), size_weights(3, "shapley"))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [1, 2])
def test_one_player_and_two_are_exact(estimator, n):
    worth = np.random.default_rng(0).normal(0, 1, (2**n, 2))
    weights = size_weights(n, "shapley")
    masks = design(estimator, weights, 8, np.random.default_rng(1))
    found = estimator(masks, table_game(worth)(masks), weights)
    assert found.values == pytest.approx(shapley_by_orders(worth), abs=1e-9)
    # A variance is a difference of sums here, so rounding leaves the root of float64's.
    assert found.standard_errors == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("queries", [0, 1, 4])
def test_shapes_and_queries_apart(estimator, n, queries):
    worth = np.random.default_rng(0).normal(0, 1, (2**n, queries))
    weights = size_weights(n, "shapley")
    masks = design(estimator, weights, 40 * n, np.random.default_rng(1))
    found = estimator(masks, table_game(worth)(masks), weights)
    assert found.values.shape == found.standard_errors.shape == found.low.shape == found.high.shape == (queries, n)
    for query in range(queries):
        alone = estimator(masks, table_game(worth[:, [query]])(masks), weights)
        assert alone.low[0] == pytest.approx(found.low[query], abs=1e-7)


@pytest.mark.parametrize("estimator", [permutation, regression, adjusted_reuse])
def test_an_additive_game_has_no_error(estimator):
    own = np.random.default_rng(0).normal(0, 1, 9)
    weights = size_weights(9, "shapley")
    masks = design(estimator, weights, 300, np.random.default_rng(1))
    found = estimator(masks, (masks @ own)[:, None], weights)
    assert found.values[0] == pytest.approx(own, abs=1e-9)
    assert found.standard_errors[0] == pytest.approx(0.0, abs=1e-9)


def test_a_game_of_sizes_has_no_error_by_sample_reuse():
    weights = size_weights(6, "beta", 2.0, 3.0)
    masks = design(sample_reuse, weights, 600, np.random.default_rng(1))
    found = sample_reuse(masks, np.sin(masks.sum(axis=1, keepdims=True)), weights)
    assert found.values == pytest.approx(truth(lambda m: np.sin(m.sum(axis=1, keepdims=True)), weights), abs=1e-9)
    assert found.standard_errors == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("estimator", "semivalue"),
    [(regression, SEMIVALUES[0])] + [(e, s) for e in ESTIMATORS if e is not regression for s in SEMIVALUES],
)
@pytest.mark.parametrize("kind", KINDS)
def test_estimates_agree_with_exact_values_within_their_errors(estimator, semivalue, kind):
    generator = np.random.default_rng(2)
    game, weights = drawn_game(kind, 8, generator), size_weights(8, *semivalue)
    masks = design(estimator, weights, 4000, generator)
    found, values = estimator(masks, game(masks), weights), truth(game, weights)
    assert (np.abs(found.values - values) <= 4.5 * found.standard_errors + 1e-9).all()
    assert found.standard_errors.max() < 0.3 * np.abs(values).max()


@pytest.mark.parametrize("estimator", [permutation, sample_reuse, adjusted_reuse])
@pytest.mark.parametrize("semivalue", SEMIVALUES)
def test_no_bias(estimator, semivalue):
    """The mean of many small estimates is nearer to the truth than any of them can tell."""
    generator = np.random.default_rng(3)
    game, weights = drawn_game("root", 5, generator), size_weights(5, *semivalue)
    found = []
    for _ in range(200):
        masks = design(estimator, weights, 60, generator)
        found.append(estimator(masks, game(masks), weights).values[0])
    error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - truth(game, weights)[0]) <= 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("estimator", [regression, sample_reuse, adjusted_reuse])
def test_too_few_coalitions_have_no_end_of_an_interval(estimator):
    weights = size_weights(9, "shapley")
    masks = design(estimator, weights, 2, np.random.default_rng(0))
    found = estimator(masks, drawn_game("root", 9, np.random.default_rng(0))(masks), weights)
    assert np.isfinite(found.values).all()
    assert np.isnan(found.standard_errors).all()
    assert np.isnan(found.low).all()


def test_the_jackknife_is_that_of_leaving_pairs_out():
    generator = np.random.default_rng(4)
    game, weights = drawn_game("root", 5, generator), size_weights(5, "shapley")
    masks = design(regression, weights, 60, generator)
    pairs = (len(masks) - 2) // 2
    left_out = []
    for pair in range(pairs):
        kept = np.delete(masks, [2 + 2 * pair, 3 + 2 * pair], axis=0)
        left_out.append(regression(kept, game(kept), weights).values[0])
    expected = np.sqrt(
        (pairs - 1) * np.mean((left_out - regression(masks, game(masks), weights).values[0]) ** 2, axis=0)
    )
    assert regression(masks, game(masks), weights).standard_errors[0] == pytest.approx(expected, rel=1e-6)


def test_designs_are_not_mistaken():
    weights = size_weights(4, "shapley")
    with pytest.raises(ValueError, match="pairs of orders"):
        permutation(all_coalitions(4), np.zeros((16, 1)), weights)
    with pytest.raises(ValueError, match="complement"):
        sample_reuse(all_coalitions(4), np.zeros((16, 1)), weights)
    with pytest.raises(ValueError, match="Shapley"):
        regression(all_coalitions(4), np.zeros((16, 1)), size_weights(4, "banzhaf"))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_intervals_of_shapley_values_cover(estimator):
    assert 0.92 <= coverage(estimator, ("shapley", 1.0, 1.0), 500, (20, 50), 0) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [permutation, sample_reuse, adjusted_reuse])
@pytest.mark.parametrize("semivalue", [("banzhaf", 1.0, 1.0), ("beta", 4.0, 1.0)])
def test_intervals_of_other_semivalues_cover(estimator, semivalue):
    assert 0.92 <= coverage(estimator, semivalue, 500, (20, 50), 1) <= 0.98


def test_tables_are_by_binary_number():
    game = drawn_game("root", 4, np.random.default_rng(0))
    masks = all_coalitions(4)
    assert (table_game(table(game, 4))(masks) == game(masks)).all()
