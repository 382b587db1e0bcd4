"""Sampling: exact where it can be, else the estimator that errs least, to a tolerance or a budget."""

import numpy as np
import pytest

from dataworth.tasks.coalitions.estimation.estimators import Estimate
from dataworth.tasks.coalitions.estimation.sampling import ESTIMATORS, sampled, widest_interval
from dataworth.tasks.coalitions.estimation.semivalues import size_weights
from tests.reference.games import drawn_game, numbers, shapley_by_orders, table


def asked_of(game):
    """The game, and a list that grows by every coalition it is asked for."""
    asked = []

    def utility(masks):
        asked.extend(masks.tolist())
        return game(masks)

    return utility, asked


def sample(game, n, tolerance=0.0, budget=2000, seed=0, semivalue=("shapley",), **more):
    return sampled(game, n, size_weights(n, *semivalue), tolerance, budget, 0.95, np.random.default_rng(seed), **more)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("queries", [0, 1, 3])
def test_small_games_are_exact(n, queries):
    game = drawn_game("root", n, np.random.default_rng(n))
    found = sample(lambda masks: np.repeat(game(masks), queries, axis=1), n)
    assert found.ended_by == found.estimate.estimator == "exact"
    assert found.widest == 0.0
    expected = np.repeat(shapley_by_orders(table(game, n)), queries, axis=0)
    assert found.estimate.values == pytest.approx(expected, abs=1e-9)


def test_leave_one_out_of_many_players_is_exact():
    game = drawn_game("root", 60, np.random.default_rng(0))
    found = sample(game, 60, budget=61, semivalue=("leave_one_out",))
    assert (found.ended_by, found.n_evaluated) == ("exact", 61)
    missed = game(np.ones((1, 60), bool)) - game(~np.eye(60, dtype=bool))
    assert found.estimate.values == pytest.approx(missed.T)


@pytest.mark.parametrize("kind", ["nearly additive", "root", "saturating", "supermodular"])
def test_the_pilot_takes_the_estimator_with_the_smallest_error(kind):
    game = drawn_game(kind, 20, np.random.default_rng(0))
    found = sample(game, 20)
    assert found.estimate.estimator in found.reason.split(",")[0]
    assert all(name in found.reason for name in ESTIMATORS)
    errors = [np.linalg.norm(sample(game, 20, estimator=name).estimate.standard_errors) for name in ESTIMATORS]
    assert np.linalg.norm(found.estimate.standard_errors) < 2 * min(errors)


@pytest.mark.parametrize("estimator", ["auto", *ESTIMATORS])
def test_no_coalition_is_evaluated_twice_nor_the_budget_passed(estimator):
    utility, asked = asked_of(drawn_game("root", 12, np.random.default_rng(0)))
    found = sample(utility, 12, budget=700, estimator=estimator)
    assert len({tuple(mask) for mask in asked}) == len(asked) == found.n_evaluated == len(found.masks)
    assert 600 <= len(asked) <= 700
    assert found.ended_by == "budget"
    assert found.widest == widest_interval(found.estimate) > 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_game_nearly_all_known_comes_to_an_end(estimator):
    found = sample(drawn_game("root", 4, np.random.default_rng(0)), 4, budget=15, estimator=estimator)
    assert found.ended_by == "budget"


def test_it_stops_at_the_tolerance():
    game = drawn_game("saturating", 18, np.random.default_rng(0))
    found = sample(game, 18, tolerance=0.05, budget=100_000)
    assert found.ended_by == "tolerance"
    assert found.widest <= 0.05
    assert found.n_evaluated < 20_000
    assert sample(game, 18, tolerance=0.02, budget=100_000).n_evaluated > found.n_evaluated


@pytest.mark.parametrize("semivalue", [("shapley",), ("banzhaf",), ("beta", 2.0, 3.0)])
def test_the_same_seed_gives_the_same_whatever_is_known(semivalue):
    utility, asked = asked_of(drawn_game("root", 18, np.random.default_rng(0)))
    first = sample(utility, 18, seed=5, semivalue=semivalue)
    asked.clear()
    again = sample(utility, 18, seed=5, semivalue=semivalue, known=(first.masks, first.utilities))
    assert not asked
    assert again.n_evaluated == 0
    assert (again.estimate.values == first.estimate.values).all()
    assert (again.estimate.low == first.estimate.low).all()
    assert again.reason == first.reason
    assert (sample(utility, 18, seed=6, semivalue=semivalue).estimate.values != first.estimate.values).any()


def test_a_budget_without_room_for_a_pilot():
    found = sample(drawn_game("root", 30, np.random.default_rng(0)), 30, budget=200)
    assert "no room for a pilot" in found.reason
    assert found.n_evaluated <= 200


@pytest.mark.parametrize(("budget", "estimator"), [(1, "auto"), (5, "auto"), (100, "permutation")])
def test_a_budget_that_pays_for_nothing_is_refused(budget, estimator):
    with pytest.raises(ValueError, match="budget"):
        sample(drawn_game("root", 30, np.random.default_rng(0)), 30, budget=budget, estimator=estimator)


def test_players_and_weights_are_as_many():
    with pytest.raises(ValueError, match="weight for each"):
        sampled(lambda masks: masks, 3, size_weights(4, "shapley"), 0.0, 10, 0.95, np.random.default_rng(0))


def test_the_widest_interval_is_a_part_of_its_querys_largest_value():
    values = np.array([[10.0, -20.0], [1.0, 0.5]])
    below, above = np.array([[1.0, 0.0], [0.1, 0.0]]), np.array([[0.0, 2.0], [0.0, 0.2]])
    found = Estimate(values, values, values - below, values + above, 4, "any")
    assert widest_interval(found) == pytest.approx(0.2)
    nothing = np.zeros((0, 3))
    assert widest_interval(Estimate(nothing, nothing, nothing, nothing, 4, "any")) == 0.0


def test_the_decisive_query_ends_the_sampling():
    """The second query is noise and would never come within the tolerance."""
    easy = drawn_game("nearly additive", 18, np.random.default_rng(0))
    noise = np.random.default_rng(1).normal(0, 1, 4099)

    def both(masks):
        return np.concatenate([easy(masks), noise[numbers(masks) % len(noise)][:, None]], axis=1)

    weights = size_weights(18, "shapley")
    found = sampled(both, 18, weights, 0.05, 2000, 0.95, np.random.default_rng(2), decisive=0)
    assert found.ended_by == "tolerance"
    assert found.widest == widest_interval(found.estimate.of_queries([0])) <= 0.05 < widest_interval(found.estimate)
    assert sampled(both, 18, weights, 0.05, 2000, 0.95, np.random.default_rng(2)).ended_by == "budget"
