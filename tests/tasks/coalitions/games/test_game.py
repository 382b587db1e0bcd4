"""Games against their definitions: quadratic losses are solved exactly, closed forms equal enumeration."""

import numpy as np
import pytest

from dataworth.tasks.cluster import dask_client
from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from dataworth.tasks.coalitions.games.additive import AdditiveGame
from dataworth.tasks.coalitions.games.expansion import QueryExpansion
from dataworth.tasks.coalitions.games.newton_steps import LayerSums, NewtonSteps, endpoint_matched, estimated_damping
from dataworth.tasks.coalitions.games.path_values import path_values
from dataworth.tasks.coalitions.games.second_order import InteractionGame
from dataworth.tasks.coalitions.games.spread import SpreadGame
from dataworth.tasks.coalitions.games.step_games import EvaluatedGame, ExpandedGame
from dataworth.tasks.configuration import ClusterConfig
from tests.reference.quadratic import N_SOURCES, PULL, Quadratic


@pytest.mark.parametrize("seed", range(3))
def test_steps_reach_what_each_coalition_would_have_trained(seed):
    problem, masks = Quadratic(seed=seed), all_coalitions(N_SOURCES)
    steps = NewtonSteps(problem.layers(), PULL)(masks)
    for mask, step in zip(masks, steps, strict=True):
        there = np.concatenate([problem.minimum(layer, mask) for layer in range(2)])
        np.testing.assert_allclose(np.concatenate(problem.trained) + step, there, atol=1e-10)
    assert estimated_damping(problem.layers(), problem.origin) == pytest.approx(PULL)


def test_endpoints_are_matched_where_training_stopped_early():
    problem = Quadratic()
    layers = [LayerSums(layer.gradients + 0.3, layer.curvatures) for layer in problem.layers()]
    matched = endpoint_matched(layers, problem.origin, np.array([1, 2, 3, 4, 5]), PULL)
    steps = NewtonSteps(matched, PULL)(np.array([[True] * N_SOURCES, [False] * N_SOURCES]))
    np.testing.assert_allclose(steps[0], 0, atol=1e-12)
    np.testing.assert_allclose(steps[1], np.concatenate(problem.origin), atol=1e-12)


def test_the_trust_region_shortens_steps_and_keeps_their_direction():
    problem, masks = Quadratic(), all_coalitions(N_SOURCES)
    free = NewtonSteps(problem.layers(), PULL)(masks)
    short = NewtonSteps(problem.layers(), PULL, largest=0.5)(masks)
    lengths = np.linalg.norm(free, axis=1)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), np.minimum(lengths, 0.5))
    np.testing.assert_allclose(short * lengths[:, None], free * np.linalg.norm(short, axis=1)[:, None], atol=1e-12)


@pytest.mark.parametrize("n_parts", [1, 2, 3, 16])
def test_layers_of_steps_are_parts_of_them(n_parts):
    problem, masks = Quadratic(), all_coalitions(N_SOURCES)
    steps = NewtonSteps(problem.layers(), PULL)
    parts = steps.by_layers(n_parts)
    assert len(parts) == min(n_parts, 2)
    np.testing.assert_array_equal(np.concatenate([part(masks) for part, _ in parts], axis=1), steps(masks))
    assert [columns.stop - columns.start for _, columns in parts] == [part.n_columns for part, _ in parts]


def test_a_cluster_plays_the_same_game():
    """Whether the queries are quadratic or linear, on one worker, on two, and on what is left of two."""
    problem, masks = Quadratic(), all_coalitions(N_SOURCES)
    whole = problem.expansion
    steps = NewtonSteps(problem.layers(), PULL, largest=0.5)
    expansions = (whole, QueryExpansion(whole.losses, whole.gradients, None))
    games = [ExpandedGame(steps, expansion, N_SOURCES) for expansion in expansions]
    found = []
    for n_workers in (1, 2):
        with dask_client(ClusterConfig(workers=n_workers), 2) as client:
            spread = [SpreadGame(game, client) for game in games]
            found.append([game.utilities(masks) for game in spread])
            if n_workers == 2:
                (first, *_) = client.scheduler_info()["workers"]
                client.retire_workers([first], close_workers=True, remove=True)
                for game, before in zip(spread, found[0], strict=True):
                    np.testing.assert_array_equal(game.utilities(masks), before)
    for game, one, two in zip(games, *found, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(one, game.utilities(masks), rtol=1e-12)


def test_the_damping_says_how_far_training_came_where_it_stopped_early():
    """Gradient descent stopped early from theta_0 on a quadratic: the pull through which one step comes nearest."""
    generator = np.random.default_rng(0)
    spectrum = np.geomspace(1e-3, 10, 30)
    start = generator.standard_normal(30)
    kept = (1 - 0.05 * spectrum) ** 200  # of theta_0 - minimum, after 200 steps at a rate of 0.05
    reached = start * kept
    layers = [LayerSums((spectrum * reached)[None], np.diag(spectrum)[None])]
    pull = estimated_damping(layers, [start - reached])
    there = start - spectrum * start / (spectrum + pull)
    assert np.linalg.norm(there - reached) < 0.15 * np.linalg.norm(start - reached)
    assert pull == pytest.approx(1 / (0.05 * 200), rel=0.7)


def test_training_against_its_gradient_has_no_damping():
    layers = [LayerSums(np.array([[-1.0, 0.0]]), 1e-3 * np.eye(2)[None])]
    assert estimated_damping(layers, [np.array([1.0, 0.0])]) == 0
    assert estimated_damping(layers, [np.zeros(2)]) == 0


def test_expanded_and_evaluated_agree_on_a_quadratic_query():
    problem, masks = Quadratic(), all_coalitions(N_SOURCES)
    steps = NewtonSteps(problem.layers(), PULL)
    expanded = ExpandedGame(steps, problem.expansion, N_SOURCES)
    evaluated = EvaluatedGame(steps, problem.expansion.after, 2, N_SOURCES)
    np.testing.assert_allclose(expanded.utilities(masks), evaluated.utilities(masks))
    assert expanded.utilities(masks[:0]).shape == (0, 2)


def test_interaction_in_closed_form_is_its_enumeration():
    problem, masks = Quadratic(), all_coalitions(N_SOURCES)
    solved = np.random.default_rng(5).standard_normal((N_SOURCES, 5))
    game = InteractionGame.of(solved, problem.expansion)
    weights = size_weights(N_SOURCES, "shapley")
    np.testing.assert_allclose(
        game.shapley(), exact_semivalues(masks, game.utilities(masks), weights), rtol=1e-9, atol=1e-9
    )
    dense = np.einsum("si,qli,qlj,tj->st", solved, problem.expansion.factors, problem.expansion.factors, solved)
    np.testing.assert_allclose(game.interactions(), dense)


def test_additive_is_its_own_sum():
    sums = np.random.default_rng(0).standard_normal((3, 4))
    masks = all_coalitions(4)
    for name in ("shapley", "banzhaf", "leave_one_out"):
        found = exact_semivalues(masks, AdditiveGame(sums).utilities(masks), size_weights(4, name))
        np.testing.assert_allclose(found, sums, atol=1e-12)


def test_path_values_add_up_to_the_whole_way():
    problem = Quadratic()
    values = path_values(problem.layers(), PULL, problem.expansion, 40)
    ends = NewtonSteps(problem.layers(), PULL)(np.array([[True] * N_SOURCES, [False] * N_SOURCES]))
    whole = problem.expansion.after(ends)
    np.testing.assert_allclose(values.sum(axis=1), whole[1] - whole[0], rtol=1e-6)
    np.testing.assert_allclose(path_values(problem.layers(), PULL, problem.expansion), values, rtol=1e-3, atol=1e-3)


def test_splitting_a_source_gains_nothing_under_path():
    problem = Quadratic()
    parts = np.array([0, 1, 2, 3, 4, 4, 4])
    share = np.array([1, 1, 1, 1, 1 / 3, 1 / 3, 1 / 3])
    split = [
        LayerSums(layer.gradients[parts] * share[:, None], layer.curvatures[parts] * share[:, None, None])
        for layer in problem.layers()
    ]
    whole = path_values(problem.layers(), PULL, problem.expansion)
    several = path_values(split, PULL, problem.expansion)
    np.testing.assert_allclose(several[:, 4:].sum(axis=1), whole[:, 4], rtol=1e-9)
    np.testing.assert_allclose(several[:, :4], whole[:, :4], rtol=1e-9)


def test_copies_are_paid_alike_and_share():
    problem, masks = Quadratic(duplicate=True), all_coalitions(N_SOURCES)
    game = ExpandedGame(NewtonSteps(problem.layers(), PULL), problem.expansion, N_SOURCES)
    values = exact_semivalues(masks, game.utilities(masks), size_weights(N_SOURCES, "shapley"))
    np.testing.assert_allclose(values[:, 0], values[:, 1], rtol=1e-9)
