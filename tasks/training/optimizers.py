"""Steps of optimisers as functions of what goes in, and their adjoints: how what comes out depends on it.

Parameters, moments and gradients are vectors of all trained weights one after another. An adjoint of a quantity x is
the derivative of some outcomes with respect to x, one row an outcome.

A step may be made in part: a dose a of it goes a times as far, and its moments and decays keep what they would keep
after a steps. A clock counts the doses; at 1 each, it counts steps, and everything is as torch has it.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["SGD", "Adam", "Clipping", "OfPace", "Optimizer", "Pace", "State"]

Vector = Float[Tensor, " p"]
Rows = Float[Tensor, "q p"]
Outcomes = Float[Tensor, " q"]


@dataclass(frozen=True)
class State:
    """Before or after a step: of the training, or the adjoints of one.

    Args:
        weights: (p,), or (q, p) adjoints.
        moments: of the optimiser, each of the same shape.
    """

    weights: Tensor
    moments: tuple[Tensor, ...]


@dataclass(frozen=True)
class Pace:
    """How far a step goes.

    Args:
        rate: of learning.
        clock: doses made, this one included.
        dose: of the step; 1: all of it.
    """

    rate: float
    clock: float
    dose: float = 1.0


@dataclass(frozen=True)
class OfPace:
    """Derivatives of some outcomes by the pace of a step, each held as independent of the others.

    Args:
        rate, clock, dose: (q,) each.
    """

    rate: Outcomes
    clock: Outcomes
    dose: Outcomes


class Optimizer(Protocol):
    """One step, and what follows from it for what went in."""

    @property
    def n_moments(self) -> int:
        """Vectors that it keeps between steps; all begin at 0."""

    def step(self, before: State, gradient: Vector, pace: Pace) -> State:
        """The state after a step.

        Args:
            before: the step.
            gradient: of its loss.
            pace: of the step.
        """

    def adjoint(
        self, before: State, gradient: Vector, pace: Pace, after: State, floor: float = 0.0
    ) -> tuple[State, Rows]:
        """Adjoints of the state before a step and of its gradient, both held as independent of each other.

        Args:
            before, gradient, pace: of the step.
            after: adjoints of the state after it.
            floor: added to second moments, as a part of their mean: where a gradient is nearly nothing, a step that is
                divided by its size is a matter of its sign, and the derivative, which is large there, holds for
                nothing that changes it. 0: the derivative as it is.
        """

    def of_pace(self, before: State, gradient: Vector, pace: Pace, after: State, floor: float = 0.0) -> OfPace:
        """Derivatives by the pace, the state before and the gradient held.

        Args:
            before, gradient, pace, after, floor: see `adjoint`.
        """


@dataclass(frozen=True)
class SGD:
    """As torch.optim.SGD without damping of its momentum.

    Args:
        momentum: of the gradients.
        weight_decay: added to the gradient.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    n_moments: int = 1

    def step(self, before: State, gradient: Vector, pace: Pace) -> State:
        kept, taken = self._kept(pace.dose)
        moment = kept * before.moments[0] + taken * (gradient + self.weight_decay * before.weights)
        return State(before.weights - pace.rate * pace.dose * moment, (moment,))

    def adjoint(
        self, before: State, gradient: Vector, pace: Pace, after: State, floor: float = 0.0
    ) -> tuple[State, Rows]:
        kept, taken = self._kept(pace.dose)
        moment = after.moments[0] - pace.rate * pace.dose * after.weights
        weights = after.weights + self.weight_decay * taken * moment
        return State(weights, (kept * moment,)), taken * moment

    def of_pace(self, before: State, gradient: Vector, pace: Pace, after: State, floor: float = 0.0) -> OfPace:
        kept, taken = self._kept(pace.dose)
        added = gradient + self.weight_decay * before.weights
        moment = kept * before.moments[0] + taken * added
        along = after.weights @ moment
        of_dose = -pace.rate * along
        if self.momentum > 0.0:
            changed = math.log(self.momentum) * kept * (before.moments[0] - added / (1.0 - self.momentum))
            of_dose = of_dose + (after.moments[0] - pace.rate * pace.dose * after.weights) @ changed
        return OfPace(-pace.dose * along, torch.zeros_like(along), of_dose)

    def _kept(self, dose: float) -> tuple[float, float]:
        """What a dose keeps of the moment, and takes of the gradient."""
        if self.momentum == 0.0:
            return 0.0, 1.0
        kept = self.momentum**dose
        return kept, (1.0 - kept) / (1.0 - self.momentum)


@dataclass(frozen=True)
class Adam:
    """As torch.optim.AdamW, or as torch.optim.Adam where the decay is of the loss.

    Args:
        betas: of the two moments.
        eps: added to the root of the second.
        weight_decay: how much of the weights a step of rate 1 takes off.
        decays_loss: the decay is added to the gradient instead.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decays_loss: bool = False
    n_moments: int = 2

    def step(self, before: State, gradient: Vector, pace: Pace) -> State:
        first, second = self._moments(before, gradient, pace)
        one, two = self._corrections(pace)
        direction = first / one / ((second / two).sqrt() + self.eps)
        kept = 1.0 - pace.rate * pace.dose * self._decay
        return State(kept * before.weights - pace.rate * pace.dose * direction, (first, second))

    def adjoint(
        self, before: State, gradient: Vector, pace: Pace, after: State, floor: float = 0.0
    ) -> tuple[State, Rows]:
        (of_first, of_second), _ = self._of_moments(before, gradient, pace, after, floor)
        kept = [beta**pace.dose for beta in self.betas]
        added = self._added(before, gradient)
        of_gradient = (1.0 - kept[0]) * of_first + (1.0 - kept[1]) * 2.0 * added * of_second
        weights = (1.0 - pace.rate * pace.dose * self._decay) * after.weights
        if self.decays_loss:
            weights = weights + self.weight_decay * of_gradient
        return State(weights, (kept[0] * of_first, kept[1] * of_second)), of_gradient

    def of_pace(self, before: State, gradient: Vector, pace: Pace, after: State, floor: float = 0.0) -> OfPace:
        of_moments, (direction, root) = self._of_moments(before, gradient, pace, after, floor)
        moved = after.weights @ (direction + self._decay * before.weights)
        added, of_dose = self._added(before, gradient), -pace.rate * moved
        for beta, moment, taken, of_moment in zip(
            self.betas, before.moments, (added, added.square()), of_moments, strict=True
        ):
            of_dose = of_dose + of_moment @ (math.log(beta) * beta**pace.dose * (moment - taken))
        one, two = self._corrections(pace)
        of_one, of_two = (-(beta**pace.clock) * math.log(beta) for beta in self.betas)
        turned = direction * (root * (of_two / (2.0 * two)) / (root + self.eps) - of_one / one)
        return OfPace(-pace.dose * moved, -pace.rate * pace.dose * (after.weights @ turned), of_dose)

    @property
    def _decay(self) -> float:
        """Of the weights, by a step of rate 1."""
        return 0.0 if self.decays_loss else self.weight_decay

    def _of_moments(
        self, before: State, gradient: Vector, pace: Pace, after: State, floor: float
    ) -> tuple[tuple[Rows, Rows], tuple[Vector, Vector]]:
        """Adjoints of the moments after the step, what comes by the weights included; direction and root of it."""
        first, second = self._moments(before, gradient, pace)
        one, two = self._corrections(pace)
        root = (second / two + floor * (second / two).mean()).sqrt()
        scale, reach = root + self.eps, pace.rate * pace.dose
        of_first = after.moments[0] - after.weights * (reach / one / scale)
        slope = reach * first / one / scale.square() / (2.0 * two * root)
        # A weight that no gradient has ever reached does not move, however its second moment might.
        of_second = after.moments[1] + after.weights * torch.where(root > 0, slope, 0.0)
        return (of_first, of_second), (first / one / scale, root)

    def _added(self, before: State, gradient: Vector) -> Vector:
        return gradient + self.weight_decay * before.weights if self.decays_loss else gradient

    def _moments(self, before: State, gradient: Vector, pace: Pace) -> tuple[Vector, Vector]:
        added = self._added(before, gradient)
        (first, second), kept = before.moments, [beta**pace.dose for beta in self.betas]
        return kept[0] * first + (1.0 - kept[0]) * added, kept[1] * second + (1.0 - kept[1]) * added.square()

    def _corrections(self, pace: Pace) -> tuple[float, float]:
        """Of the moments, which begin at 0."""
        return 1.0 - self.betas[0] ** pace.clock, 1.0 - self.betas[1] ** pace.clock


@dataclass(frozen=True)
class Clipping:
    """A gradient shortened to a norm, as torch.nn.utils.clip_grad_norm_ does.

    Args:
        norm: longest that is left; None: any.
    """

    norm: float | None

    def __call__(self, gradient: Vector) -> Vector:
        return gradient * self._factor(gradient)

    def adjoint(self, gradient: Vector, after: Rows) -> Rows:
        """Of the gradient before, from that of the shortened one."""
        factor = self._factor(gradient)
        if factor == 1.0:
            return after
        assert self.norm is not None
        length = gradient.norm()
        along = (after @ gradient)[:, None] * gradient
        return factor * after - along * (self.norm / (length + TINY).square() / length)

    def _factor(self, gradient: Vector) -> float:
        if self.norm is None:
            return 1.0
        return min(1.0, self.norm / (float(gradient.norm()) + TINY))


# torch adds it to the norm.
TINY = 1e-6
