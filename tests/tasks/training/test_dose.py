"""Doses against central differences of a training in doses that is written out here, and against their definition."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.func import functional_call

from dataworth.tasks.training.dose import FEW, MANY, doses, of_doses
from dataworth.tasks.training.optimizers import SGD, Adam
from dataworth.tasks.training.recipes import Step
from dataworth.tasks.training.replay import Replay
from tests.tasks.training.test_replay import BATCH, EPOCHS, SMOOTH, N, by_torch, language_model, network, recipe_of

PORTIONS = np.array([0.1, 0.4, 0.2, 0.3])


def steps_of(rate, parts=1, portions=PORTIONS):
    generator = np.random.default_rng(0)
    batches = [order for _ in range(EPOCHS) for order in generator.permutation(N).reshape(-1, BATCH)]
    rates = rate * np.minimum(1.0, np.linspace(0.3, 1.8, len(batches))) * np.linspace(1.0, 0.2, len(batches))
    return [
        Step(tuple(np.array_split(batch, parts)), float(each), float(BATCH), portions)
        for batch, each in zip(batches, rates, strict=True)
    ]


def by_doses(problem, recipe, given):
    """(q,) outcomes of the training in some doses, written out."""
    names = list(recipe.trained)
    weights = torch.cat([dict(problem.model.named_parameters())[name].detach().flatten() for name in names])
    shapes = {name: dict(problem.model.named_parameters())[name].shape for name in names}
    rates = np.array([step.rate for step in recipe.steps])
    amounts = [float((given[step.numbers] * step.portions).sum()) for step in recipe.steps]
    rule, first, second, clock = recipe.optimizer, torch.zeros_like(weights), torch.zeros_like(weights), 0.0

    def call_with(at):
        parts = at.split([int(np.prod(shape)) for shape in shapes.values()])
        tensors = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return lambda *arguments, **named: functional_call(problem.model, tensors, arguments, named)

    for step, amount in zip(recipe.steps, amounts, strict=True):
        if amount == 0.0:
            continue
        place = len(amounts) * clock / sum(amounts)
        rate = float(np.interp(place, np.arange(len(rates)), rates))
        clock += amount
        at = weights.clone().requires_grad_(True)
        losses = problem.losses(call_with(at), problem.examples, step.numbers)
        loss = (torch.from_numpy(given[step.numbers]) * losses).sum() / (step.divisor * amount)
        (gradient,) = torch.autograd.grad(loss, at)
        if recipe.clipping.norm is not None:
            gradient = gradient * min(1.0, recipe.clipping.norm / (float(gradient.norm()) + 1e-6))
        if isinstance(rule, SGD):
            gradient = gradient + rule.weight_decay * weights
            kept = rule.momentum**amount
            first = kept * first + (1 - kept) / (1 - rule.momentum) * gradient
            weights = weights - rate * amount * first
            continue
        if rule.decays_loss:
            gradient = gradient + rule.weight_decay * weights
        one, two = (beta**amount for beta in rule.betas)
        first, second = one * first + (1 - one) * gradient, two * second + (1 - two) * gradient**2
        corrected = [1 - beta**clock for beta in rule.betas]
        direction = first / corrected[0] / ((second / corrected[1]).sqrt() + rule.eps)
        decay = 0.0 if rule.decays_loss else rule.weight_decay
        weights = weights - rate * amount * (direction + decay * weights)
    with torch.no_grad():
        return problem.losses(call_with(weights), problem.queries, np.arange(3)).numpy()


CASES = {
    "SGD": (network, SGD(0.0, 0.05), 0.3, None, 1),
    "SGD, momentum": (network, SGD(0.9, 0.05), 0.1, 0.2, 1),
    "Adam, decay of the loss": (network, Adam((0.8, 0.9), 1e-3, 0.05, decays_loss=True), 0.03, None, 1),
    "AdamW, accumulated, clipped": (network, Adam((0.8, 0.9), SMOOTH, 0.1), 0.03, 0.3, 2),
    "language model": (language_model, Adam(eps=SMOOTH), 0.003, 1.0, 1),
}


@pytest.mark.parametrize("dose", [0.2, 1.0])
@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_those_of_differences(name, dose):
    made, optimizer, rate, clipped, parts = CASES[name]
    problem = made()
    recipe = recipe_of(problem, steps_of(rate, parts), optimizer, clipped)
    replay = Replay(recipe, exact=True, dose=dose)
    all_alike = np.full(N, dose)
    np.testing.assert_allclose(replay.losses(problem.queries), by_doses(problem, recipe, all_alike), rtol=1e-9)
    found, h = of_doses(replay, problem.queries), 1e-4
    for number in (0, 5, 11):
        up, down = all_alike.copy(), all_alike.copy()
        up[number] += h
        down[number] -= h
        expected = (by_doses(problem, recipe, up) - by_doses(problem, recipe, down)) / (2 * h)
        np.testing.assert_allclose(found[:, number], expected, rtol=1e-4, atol=1e-4 * np.abs(found).max())


def test_doses_of_1_and_0_are_the_training_on_some():
    """Steps of one source's examples each, at one rate: torch's own AdamW with the steps of some sources only."""
    problem, optimizer = network(), Adam((0.8, 0.9), SMOOTH, 0.1)
    batches = [step.numbers for step in steps_of(1.0)]
    sources = np.arange(N) // BATCH
    steps = [Step((np.flatnonzero(sources == n % 3),), 0.03, float(BATCH), PORTIONS) for n in range(len(batches))]
    recipe = recipe_of(problem, steps, optimizer, None)
    for chosen in ({0, 2}, {1}, {0, 1, 2}):
        some = [step for step in steps if sources[step.numbers[0]] in chosen]

        def of_torch(p):
            return torch.optim.AdamW(p, betas=(0.8, 0.9), eps=SMOOTH, weight_decay=0.1)

        expected = by_torch(problem, some, of_torch, None, torch.ones(N, dtype=torch.float64))
        given = np.isin(sources, list(chosen)).astype(float)
        np.testing.assert_allclose(by_doses(problem, recipe, given), expected.numpy(), rtol=1e-9)


@pytest.mark.parametrize(("nodes", "degree"), [(FEW, 5), (MANY, 11)])
def test_the_rules_integrate_polynomials(nodes, degree):
    for power in range(degree + 1):
        assert (nodes.weights * nodes.at**power).sum() == pytest.approx(1 / (power + 1), rel=1e-12)
    assert (nodes.weights * nodes.at ** (degree + 1)).sum() != pytest.approx(1 / (degree + 2), rel=1e-9)
    assert all(left < right for left, right in pairwise(nodes.at))
    assert set(FEW.at) <= set(MANY.at)


@pytest.mark.parametrize("made", [network, language_model])
def test_values_add_up_to_what_was_taught(made):
    """Asked what it is trained on, so that something is taught."""
    problem = made()
    first = {name: None if rows is None else rows[:3] for name, rows in vars(problem.examples).items()}
    problem = replace(problem, queries=replace(problem.examples, **first))
    recipe = recipe_of(problem, steps_of(0.02 if made is network else 0.003), Adam(eps=SMOOTH), 1.0)
    found = doses(recipe, problem.queries, tolerance=1e-3)
    taken = found.before - found.after
    assert taken.sum() > 0.01 * found.before.sum()
    np.testing.assert_allclose(found.values.sum(axis=1), taken, rtol=0.01, atol=1e-3 * np.abs(taken).max())
    assert abs(found.missed) <= 1e-3
    np.testing.assert_allclose(found.after, by_doses(problem, recipe, np.ones(N)), rtol=1e-9)
    np.testing.assert_allclose(found.before, by_doses(problem, recipe, np.zeros(N)), rtol=1e-12)


def test_more_trainings_are_made_where_few_miss():
    problem = network()
    recipe = recipe_of(problem, steps_of(0.03), Adam(eps=SMOOTH), None)
    few, many = (doses(recipe, problem.queries, tolerance) for tolerance in (1.0, 0.0))
    assert (few.trainings, many.trainings) == (3, 7)
    assert abs(many.missed) < abs(few.missed)


def test_copies_in_the_same_steps_share():
    problem = network()
    rows = problem.examples
    for tensor in (rows.inputs, rows.labels):
        tensor[1] = tensor[0]
    together = [np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7]), np.array([8, 9, 10, 11])] * 3
    steps = [Step((batch,), 0.03, float(BATCH)) for batch in together]
    found = doses(recipe_of(problem, steps, Adam(eps=SMOOTH), None), problem.queries)
    np.testing.assert_allclose(found.values[:, 0], found.values[:, 1], rtol=1e-9)
