"""Games held against all 256 retrainings of multinomial logistic regression on digits."""

import numpy as np
import pytest
import torch

from dataworth.tasks.coalitions.games.newton_steps import NewtonSteps, endpoint_matched, estimated_damping
from dataworth.tasks.coalitions.games.step_games import EvaluatedGame
from tests.reference.digits import (
    MASKS,
    NAMES,
    Network,
    agreement,
    digits,
    everybody,
    expansion,
    layer_sums,
    shapley,
    trained,
)

DECAY, STEPS = 1.0, 250


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_newton_is_near_the_truth_where_additive_is_not(seed):
    problem, network = digits(seed), Network()
    start = network.start(seed)
    rate = 1 / (0.25 * 14 * len(problem.labels) + DECAY)
    weights = trained(network, problem, start, STEPS, rate, DECAY, momentum=0.95)
    worth = -network.losses(weights, problem.queries, problem.query_labels).mean(axis=1)
    truth = shapley(worth)
    reached = everybody(weights)
    halfway = [(one + two) / 2 for one, two in zip(reached, start, strict=True)]
    sums = layer_sums(network, problem, reached, halfway)
    origin = [(one - two).flatten().double().numpy() for one, two in zip(start, reached, strict=True)]
    pull = estimated_damping(sums, origin)
    assert pull == pytest.approx(DECAY, rel=0.05)
    matched = endpoint_matched(sums, origin, np.bincount(problem.sources), pull)
    steps = NewtonSteps(matched, pull)

    def losses_at(steps):
        moved = [reached[0][None].double() + torch.from_numpy(steps).view(-1, *reached[0].shape)]
        return network.losses(moved, problem.queries, problem.query_labels).mean(axis=1)[:, None]

    newton = shapley(EvaluatedGame(steps, losses_at, 1, len(NAMES)).utilities(MASKS)[:, 0])
    here = layer_sums(network, problem, reached, reached)[0]
    solved = np.linalg.solve(here.curvatures.sum(axis=0) + DECAY * np.eye(here.gradients.shape[1]), here.gradients.T)
    additive = agreement((expansion(network, problem, reached).gradients @ solved)[0], truth)
    found = agreement(newton, truth)
    assert found["spearman"] >= 0.95, (found, additive)
    assert found["share error"] <= 0.6 * additive["share error"], (found, additive)
    assert newton[0] == pytest.approx(newton[1], rel=1e-6)
