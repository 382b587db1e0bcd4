"""Steps of optimisers as functions of what goes in, and their adjoints: how what comes out depends on it.

Parameters, moments and gradients are vectors of all trained weights one after another. An adjoint of a quantity x is
the derivative of some outcomes with respect to x, one row an outcome.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["SGD", "Adam", "Clipping", "Optimizer", "State"]

Vector = Float[Tensor, " p"]
Rows = Float[Tensor, "q p"]


@dataclass(frozen=True)
class State:
    """Before or after a step: of the training, or the adjoints of one.

    Args:
        weights: (p,), or (q, p) adjoints.
        moments: of the optimiser, each of the same shape.
    """

    weights: Tensor
    moments: tuple[Tensor, ...]


class Optimizer(Protocol):
    """One step, and what follows from it for what went in."""

    @property
    def n_moments(self) -> int:
        """Vectors that it keeps between steps; all begin at 0."""

    def step(self, before: State, gradient: Vector, rate: float, number: int) -> State:
        """The state after a step.

        Args:
            before: the step.
            gradient: of its loss.
            rate: of learning.
            number: of the step, from 1.
        """

    def adjoint(
        self, before: State, gradient: Vector, rate: float, number: int, after: State, floor: float = 0.0
    ) -> tuple[State, Rows]:
        """Adjoints of the state before a step and of its gradient, both held as independent of each other.

        Args:
            before, gradient, rate, number: of the step.
            after: adjoints of the state after it.
            floor: added to second moments, as a part of their mean: where a gradient is nearly nothing, a step that is
                divided by its size is a matter of its sign, and the derivative, which is large there, holds for
                nothing that changes it. 0: the derivative as it is.
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

    def step(self, before: State, gradient: Vector, rate: float, number: int) -> State:
        (moment,) = before.moments
        moment = self.momentum * moment + gradient + self.weight_decay * before.weights
        return State(before.weights - rate * moment, (moment,))

    def adjoint(
        self, before: State, gradient: Vector, rate: float, number: int, after: State, floor: float = 0.0
    ) -> tuple[State, Rows]:
        moment = after.moments[0] - rate * after.weights
        weights = after.weights + self.weight_decay * moment
        return State(weights, (self.momentum * moment,)), moment


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

    def step(self, before: State, gradient: Vector, rate: float, number: int) -> State:
        first, second = self._moments(before, gradient)
        kept = 1.0 if self.decays_loss else 1.0 - rate * self.weight_decay
        direction = first / self._corrected(0, number) / ((second / self._corrected(1, number)).sqrt() + self.eps)
        return State(kept * before.weights - rate * direction, (first, second))

    def adjoint(
        self, before: State, gradient: Vector, rate: float, number: int, after: State, floor: float = 0.0
    ) -> tuple[State, Rows]:
        first, second = self._moments(before, gradient)
        one, two = self._corrected(0, number), self._corrected(1, number)
        root = (second / two + floor * (second / two).mean()).sqrt()
        scale = root + self.eps
        of_first = after.moments[0] - after.weights * (rate / one / scale)
        slope = rate * first / one / scale.square() / (2.0 * two * root)
        # A weight that no gradient has ever reached does not move, however its second moment might.
        of_second = after.moments[1] + after.weights * torch.where(root > 0, slope, 0.0)
        added = gradient + self.weight_decay * before.weights if self.decays_loss else gradient
        of_gradient = (1.0 - self.betas[0]) * of_first + (1.0 - self.betas[1]) * 2.0 * added * of_second
        if self.decays_loss:
            weights = after.weights + self.weight_decay * of_gradient
        else:
            weights = (1.0 - rate * self.weight_decay) * after.weights
        return State(weights, (self.betas[0] * of_first, self.betas[1] * of_second)), of_gradient

    def _moments(self, before: State, gradient: Vector) -> tuple[Vector, Vector]:
        added = gradient + self.weight_decay * before.weights if self.decays_loss else gradient
        first, second = before.moments
        return (
            self.betas[0] * first + (1.0 - self.betas[0]) * added,
            self.betas[1] * second + (1.0 - self.betas[1]) * added.square(),
        )

    def _corrected(self, moment: int, number: int) -> float:
        return 1.0 - self.betas[moment] ** number


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
