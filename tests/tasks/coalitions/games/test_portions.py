"""Players that hold portions of sources, against games in which these portions are sources of their own."""

import numpy as np
import pytest
from scipy.integrate import quad_vec

from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.coalitions.games.newton_steps import LayerSums, NewtonSteps
from dataworth.tasks.coalitions.games.path_values import path_values
from dataworth.tasks.coalitions.games.play import Play
from dataworth.tasks.coalitions.games.portions import PortionedGame, all_but, divided, known_utilities
from dataworth.tasks.coalitions.games.step_games import ExpandedGame
from dataworth.tasks.coalitions.games.sums_game import game_on
from tests.reference.quadratic import N_SOURCES, PULL, Quadratic

PARTS = 3


class Sums:
    """What a play needs of a model."""

    damping, damping_origin, largest, groups = PULL, "given", None, None

    def __init__(self, layers):
        self.layers = layers


class Kept:
    """Remembers what it is told, and counts what it is asked to keep."""

    def __init__(self, masks, utilities):
        self.masks, self.utilities, self.added = masks, utilities, 0

    def known(self, n_players, n_queries):
        return self.masks, self.utilities

    def add(self, masks, utilities):
        self.added += len(masks)


NOTHING = Kept(np.empty((0, N_SOURCES), bool), np.empty((0, 2)))


def split_layers(layers, source, parts):
    """The sources' sums with one of them in equal parts: the first in its place, the others at the end."""
    found = []
    for layer in layers:
        gradients, curvatures = layer.gradients.copy(), layer.curvatures.copy()
        gradients[source] /= parts
        curvatures[source] /= parts
        more = [np.repeat(rows[[source]], parts - 1, axis=0) for rows in (gradients, curvatures)]
        found.append(LayerSums(np.concatenate([gradients, more[0]]), np.concatenate([curvatures, more[1]])))
    return found


def dense_loss(problem, degrees):
    """(q,) expanded losses where every source takes part to a degree, by dense solves."""
    steps = []
    for layer in problem.layers():
        matrix = sum(w * h for w, h in zip(degrees, layer.curvatures, strict=True)) + PULL * np.eye(
            layer.gradients.shape[1]
        )
        removed = sum((1 - w) * g for w, g in zip(degrees, layer.gradients, strict=True))
        steps.append(np.linalg.solve(matrix, removed))
    return problem.expansion.after(np.concatenate(steps)[None])[0]


def play_of(layers, problem, portions=None):
    return Play(Sums(layers), problem.expansion, problem.expansion.after, None, portions)


@pytest.mark.parametrize("source", [0, 3])
def test_parts_of_a_source_are_sources_with_parts_of_its_sums(source):
    problem, masks = Quadratic(), all_coalitions(N_SOURCES + PARTS - 1)
    game = ExpandedGame(NewtonSteps(problem.layers(), PULL), problem.expansion, N_SOURCES)
    portioned = PortionedGame(game, divided(N_SOURCES, source, PARTS))
    apart = NewtonSteps(split_layers(problem.layers(), source, PARTS), PULL)
    expected = ExpandedGame(apart, problem.expansion, portioned.n_players).utilities(masks)
    np.testing.assert_allclose(portioned.utilities(masks), expected, rtol=1e-9, atol=1e-9)
    assert portioned.utilities(masks[:0]).shape == (0, 2)


def test_what_several_coalitions_hold_alike_is_asked_for_once():
    asked = []

    class Counted:
        n_players = 3

        def utilities(self, masks):
            asked.append(masks)
            return masks.sum(axis=1, keepdims=True)

    masks = all_coalitions(7)
    found = PortionedGame(Counted(), divided(3, 1, 5)).utilities(masks)
    assert len(asked[0]) == 2 * 2 * 6
    np.testing.assert_allclose(found[:, 0], masks @ np.array([1, 0.2, 1, 0.2, 0.2, 0.2, 0.2]))


@pytest.mark.parametrize("game", ["newton", "interaction", "path"])
@pytest.mark.parametrize("semivalue", ["shapley", "banzhaf"])
def test_values_of_parts_and_of_those_left(game, semivalue):
    if (game, semivalue) == ("path", "banzhaf"):
        return
    problem = Quadratic()
    sources = SourcesConfig(game=game, utility="quadratic", semivalue=semivalue)
    portions = divided(N_SOURCES, 1, PARTS)
    found = game_on(play_of(problem.layers(), problem, portions), sources, NOTHING).estimate().values
    apart = game_on(play_of(split_layers(problem.layers(), 1, PARTS), problem), sources, NOTHING).estimate().values
    np.testing.assert_allclose(found, apart, rtol=1e-8, atol=1e-10)
    if game == "path":
        whole = game_on(play_of(problem.layers(), problem), sources, NOTHING).estimate().values
        np.testing.assert_allclose(found[:, [1, 5, 6]].sum(axis=1), whole[:, 1], rtol=1e-9)


@pytest.mark.parametrize("game", ["newton", "interaction"])
def test_an_absent_source_is_in_no_coalition_and_stays_removed(game):
    problem, absent = Quadratic(), 2
    sources = SourcesConfig(game=game, utility="quadratic")
    left = play_of(problem.layers(), problem, all_but(N_SOURCES, [absent]))
    masks = all_coalitions(N_SOURCES - 1)
    everybody = np.insert(masks, absent, False, axis=1)
    expected = game_on(play_of(problem.layers(), problem), sources, NOTHING).game().utilities(everybody)
    np.testing.assert_allclose(game_on(left, sources, NOTHING).game().utilities(masks), expected, rtol=1e-9)
    if game == "newton":
        np.testing.assert_allclose(-expected, [dense_loss(problem, mask) for mask in everybody], rtol=1e-9)
    values = game_on(left, sources, NOTHING).estimate().values
    np.testing.assert_allclose(values[:-1].sum(axis=1), expected[masks.all(axis=1)][0] - expected[0], rtol=1e-9)


@pytest.mark.parametrize("absent", [[], [2], [0, 4]])
def test_path_values_of_those_left_are_the_integral_of_their_marginal_worth(absent):
    """Losses by dense solves, marginal worth by central differences, the integral by adaptive quadrature."""
    problem, step = Quadratic(), 1e-5
    left = np.array([float(n not in absent) for n in range(N_SOURCES)])

    def marginal(t, source):
        moved = np.zeros(N_SOURCES)
        moved[source] = step
        return (dense_loss(problem, t * left - moved) - dense_loss(problem, t * left + moved)) / (2 * step)

    players = np.flatnonzero(left)
    expected = [quad_vec(lambda t, s=s: marginal(t, s), 0, 1, epsabs=1e-9, epsrel=1e-9)[0] for s in players]
    found = path_values(problem.layers(), PULL, problem.expansion, 60, all_but(N_SOURCES, absent))
    np.testing.assert_allclose(found.T, expected, rtol=1e-5, atol=1e-7)
    whole = dense_loss(problem, np.zeros(N_SOURCES)) - dense_loss(problem, left)
    np.testing.assert_allclose(found.sum(axis=1), whole, rtol=1e-6)


def test_coalitions_of_sources_that_are_known_are_not_asked_again():
    problem = Quadratic()
    sources = SourcesConfig(game="newton", utility="quadratic")
    masks = all_coalitions(N_SOURCES)
    kept = Kept(masks, game_on(play_of(problem.layers(), problem), sources, NOTHING).game().utilities(masks))
    for portions, n_asked in ((all_but(N_SOURCES, [3]), 0), (divided(N_SOURCES, 3, 2), 32)):
        left = play_of(problem.layers(), problem, portions)
        found = game_on(left, sources, kept).valuation()
        assert found.facts["coalitions evaluated now"] == n_asked
        np.testing.assert_allclose(found.values, game_on(left, sources, NOTHING).valuation().values, rtol=1e-9)
    assert kept.added == 0


def test_known_coalitions_of_those_who_hold_them():
    masks = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 0]], bool)
    worth = np.array([[1.0], [2.0], [3.0]])
    found, of_each = known_utilities(masks, worth, all_but(3, [1]))
    np.testing.assert_array_equal(found, [[True, True], [False, False]])
    np.testing.assert_array_equal(of_each, [[1.0], [3.0]])
    found, of_each = known_utilities(masks, worth, divided(3, 2, 3))
    np.testing.assert_array_equal(found, [[1, 0, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(of_each, worth)
