"""What every example taught, as shares of the whole: the training made in ever larger doses of everybody.

The dose w of an example is how much of it is trained on. Of a step, whose portions are p, the dose is a = sum of w p,
the gradient is the mean of its examples' gradients weighted by w p; moments, decays and the schedule go on by a. With
doses of 1 this is the training, with doses of 0 nothing is trained, and where every step is of one source's examples,
doses of 0 and 1 are the training on some sources. (Weights of losses are not doses: to an optimiser that divides by
the size of gradients, all of them doubled are the same, so that their derivatives add up to nothing.)

What an example is worth is the integral of minus the derivative of the queries' loss by its dose, while the doses of
all grow together from 0 to 1 (Aumann and Shapley 1974, Values of Non-Atomic Games). The values add up to what the
training took off the loss, over any grouping, and splitting an example or a source changes nothing. The integral is a
sum over few trainings, each gone through backwards (dataworth.tasks.training.replay): the nodes of Gauss and
Legendre, and those of Kronrod between them where the first miss what was measured.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from dataworth.tasks.corpus.examples import Examples
from dataworth.tasks.training.recipes import Recipe, Step
from dataworth.tasks.training.replay import Replay

__all__ = ["FEW", "MANY", "Doses", "Nodes", "doses", "of_doses"]


@dataclass(frozen=True)
class Nodes:
    """A rule of integration over doses from 0 to 1.

    Args:
        at: (k,) doses.
        weights: (k,) of them.
    """

    at: Float[np.ndarray, " k"]
    weights: Float[np.ndarray, " k"]


def _between_0_and_1(right: list[float], weights: list[float]) -> Nodes:
    """A symmetric rule over (-1, 1), from its nodes >= 0, the middle one last."""
    half, of_half = np.array(right), np.array(weights)
    at, of_all = np.concatenate([-half, half[-2::-1]]), np.concatenate([of_half, of_half[-2::-1]])
    return Nodes((at + 1.0) / 2.0, of_all / 2.0)


# Gauss and Legendre's of three nodes, and Kronrod's of seven, which holds those three (Laurie 1997, Calculation of
# Gauss-Kronrod quadrature rules): polynomials of degree 5 and 11 are integrated exactly.
FEW = _between_0_and_1([0.774596669241483377, 0.0], [5.0 / 9.0, 8.0 / 9.0])
MANY = _between_0_and_1(
    [0.960491268708020283, 0.774596669241483377, 0.434243749346802558, 0.0],
    [0.104656226026467265, 0.268488089868333441, 0.401397414775962223, 0.450916538658474142],
)


@dataclass(frozen=True)
class Doses:
    """What a training taught, example by example.

    Args:
        values: (q, n) nats that each example took off each query's loss.
        before, after: (q,) nats of each query, before the training and after it.
        trainings: made in part to find out.
    """

    values: Float[np.ndarray, "q n"]
    before: Float[np.ndarray, " q"]
    after: Float[np.ndarray, " q"]
    trainings: int

    @property
    def missed(self) -> float:
        """Part of what was taken off all queries together that the values do not add up to; of either sign."""
        taken = float((self.before - self.after).sum())
        return (taken - float(self.values.sum())) / taken if taken else 0.0


def doses(
    recipe: Recipe,
    queries: Examples,
    tolerance: float = 0.01,
    memory: int = 2**31,
    dtype: torch.dtype | None = None,
    on_step: Callable[[int, int], None] = lambda *_: None,
) -> Doses:
    """Values of a recipe's examples: by few trainings, by more where those miss what was measured.

    Args:
        recipe: of the training.
        queries: whose losses are divided.
        tolerance: part of what the training took off that may be missed.
        memory, dtype: see `Replay`.
        on_step: called with (step, steps) after every step of every training, forwards and backwards.
    """
    known: dict[float, np.ndarray] = {}
    made, steps = 0, 0

    def one_more() -> None:
        nonlocal made
        made += 1
        on_step(made, steps)

    whole = Replay(recipe, memory, dtype)
    before, after = (one.losses(queries) for one in (Replay(replace(recipe, steps=()), memory, dtype), whole))
    for nodes in (FEW, MANY):
        missing = [float(at) for at in nodes.at if at not in known]
        steps += len(missing) * whole.passes(queries.n_examples) * len(recipe.steps)
        for at in missing:
            known[at] = -of_doses(Replay(recipe, memory, dtype, exact=True, dose=at, on_step=one_more), queries)
        values = np.einsum("k,kqn->qn", nodes.weights, np.stack([known[at] for at in nodes.at]))
        found = Doses(values, before, after, len(known))
        if abs(found.missed) <= tolerance:
            break
    return found


def of_doses(replay: Replay, queries: Examples) -> Float[np.ndarray, "q n"]:
    """(n_queries, n_examples) derivatives of the queries' losses by the doses of the examples.

    Args:
        replay: of a training whose doses are all the same.
        queries: that the model it leads to is asked.
    """
    recipe, dose = replay.recipe, replay.dose
    steps = recipe.steps
    found = np.zeros((queries.n_examples, recipe.examples.n_examples))
    portions = [_portions(step) for step in steps]
    slopes = _slopes(np.array([step.rate for step in steps]))
    of_clock = np.zeros(queries.n_examples)  # of all steps from this one on
    of_dose, of_rate = np.zeros((2, queries.n_examples, len(steps)))
    for chunk, told in replay.told(queries):
        step, portion = steps[told.number], portions[told.number]
        if told.number == len(steps) - 1:
            of_clock[chunk] = 0.0
        of_clock[chunk] += told.of_pace.clock.cpu().numpy()
        of_dose[chunk, told.number] = told.of_pace.dose.cpu().numpy() + of_clock[chunk]
        of_rate[chunk, told.number] = told.of_pace.rate.cpu().numpy() * slopes[told.number]
        # The gradient is a mean: more of one example is less of the others.
        of_gradient = told.of_examples.numpy()
        of_gradient = (of_gradient - portion * of_gradient.sum(axis=1, keepdims=True)) / dose
        np.add.at(found[chunk].T, step.numbers, of_gradient.T)
    of_dose += _of_schedule(of_rate, dose)
    for step, portion, each in zip(steps, portions, of_dose.T, strict=True):
        np.add.at(found.T, step.numbers, portion[:, None] * each)
    return found


def _portions(step: Step) -> Float[np.ndarray, " b"]:
    numbers = step.numbers
    return np.full(len(numbers), 1.0 / len(numbers)) if step.portions is None else step.portions


def _slopes(rates: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """How the rate changes with the place in the schedule: drawn between the steps, and level after the last."""
    drawn = np.concatenate([rates[:1], rates, rates[-1:]])
    return (drawn[2:] - drawn[:-2]) / 2.0


def _of_schedule(of_place: Float[np.ndarray, "q k"], dose: float) -> Float[np.ndarray, "q k"]:
    """Derivatives by the doses of steps through the places of all steps in the schedule.

    A step's place is that of the doses before it among all doses: (sum of a_j, j < k) / (sum of all a_j), in steps.

    Args:
        of_place: derivatives by the place of each.
        dose: of each.
    """
    n_steps = of_place.shape[1]
    places = np.arange(n_steps)
    after = of_place[:, ::-1].cumsum(axis=1)[:, ::-1] - of_place  # of all later steps
    return (after - (of_place * places / max(1, n_steps)).sum(axis=1, keepdims=True)) / dose
