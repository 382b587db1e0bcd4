"""Values in parameters: their dot product with a query is the value in the linear newton game, exact or sampled."""

import numpy as np
import pytest

from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from dataworth.tasks.coalitions.games.expansion import QueryExpansion
from dataworth.tasks.coalitions.games.newton_steps import LayerSums, NewtonSteps
from dataworth.tasks.coalitions.games.step_games import ExpandedGame
from dataworth.tasks.coalitions.games.vectors import vector_design, vector_values


def drawn(n_sources, seed, largest=None):
    generator = np.random.default_rng(seed)
    layers = []
    for size in (3, 5):
        factors = generator.normal(size=(n_sources, size, 2))
        layers.append(LayerSums(generator.normal(size=(n_sources, size)), factors @ factors.swapaxes(1, 2)))
    gradients = generator.normal(size=(4, 8))
    return NewtonSteps(layers, 0.7, largest), QueryExpansion(np.zeros(4), gradients, None)


def exact_values(steps, expansion, n_sources, weights):
    masks = all_coalitions(n_sources)
    return exact_semivalues(masks, ExpandedGame(steps, expansion, n_sources).utilities(masks), weights)


@pytest.mark.parametrize("semivalue", ["shapley", "banzhaf", "leave_one_out"])
@pytest.mark.parametrize("largest", [None, 0.5])
def test_exact_vectors_give_the_values_of_any_query(semivalue, largest):
    steps, expansion = drawn(6, 0, largest)
    weights = size_weights(6, semivalue)
    design = vector_design(6, weights, 64, np.random.default_rng(0))
    assert design.exact
    found = vector_values(steps, design).estimate(expansion.gradients, 0.95)
    expected = exact_values(steps, expansion, 6, weights)
    np.testing.assert_allclose(found.values[:4], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.values[4], expected.sum(axis=0), rtol=1e-9, atol=1e-12)
    assert not found.standard_errors.any()


def test_sampled_vectors_are_within_their_intervals_and_efficient():
    covered = []
    for seed in range(60):
        steps, expansion = drawn(8, seed)
        weights = size_weights(8, "shapley")
        design = vector_design(8, weights, 200, np.random.default_rng(seed))
        assert not design.exact
        assert design.n_coalitions <= 200
        found = vector_values(steps, design).estimate(expansion.gradients, 0.95)
        expected = exact_values(steps, expansion, 8, weights)
        ends = ExpandedGame(steps, expansion, 8).utilities(np.array([[False] * 8, [True] * 8]))
        np.testing.assert_allclose(found.values[:4].sum(axis=1), ends[1] - ends[0], rtol=1e-9)
        covered.append((found.low[:4] <= expected) & (expected <= found.high[:4]))
    assert 0.9 <= np.mean(covered) <= 0.99


def test_replicates_are_the_values_without_a_group():
    steps, expansion = drawn(5, 1)
    left = [drawn(5, seed)[0] for seed in (2, 3)]
    weights = size_weights(5, "shapley")
    found = vector_values(steps, vector_design(5, weights, 32, np.random.default_rng(0)), iter(left))
    for number, other in enumerate(left):
        expected = exact_values(other, expansion, 5, weights)
        np.testing.assert_allclose(found.replicate_values(expansion.gradients)[number, :4], expected, rtol=1e-9)


def test_a_budget_that_pays_for_no_error_is_refused():
    with pytest.raises(ValueError, match="20 sources need a budget of 76"):
        vector_design(20, size_weights(20, "shapley"), 75, np.random.default_rng(0))
