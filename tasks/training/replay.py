"""What the weight of every example's loss did in a training: the training gone through again from its end.

Reverse-mode differentiation through every step of the optimiser (Ilyas & Engstrom 2025, arXiv 2503.13751, 2504.16430),
all queries together on one graph a step. Exact derivatives of a rough training are right and of no use: they grow from
step to step, along directions in which the loss is bent the wrong way, until they tell of steps so small that nobody
takes them. What is told by default is steadied: the Gauss-Newton matrix, which is bent nowhere the wrong way, stands in
for the Hessian, what a query tells of the weights may not grow from a step to the one before it, and second moments
have a floor: the first steps of Adam go by signs, and without it their few documents are told to have done everything.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from dataworth.tasks.capture.losses import IGNORED
from dataworth.tasks.corpus.examples import Examples
from dataworth.tasks.training.optimizers import OfPace, Pace, State
from dataworth.tasks.training.recipes import Call, Recipe

__all__ = ["Replay", "Told"]

# Of second moments, as a part of their mean. Chosen on the character model of tests/reference/lessons.py: exact
# derivatives of one training have a linear datamodeling score of 0.03 there (six queries), steadied ones 0.43 without
# a floor, 0.45 with this one and 0.44 with ten times as much.
FLOOR = 0.1
# Of one entry of one query's adjoints in float64, with what is computed from it at a time.
ADJOINT_BYTES = 24


@dataclass(frozen=True)
class Told:
    """What adjoints of the state after a step tell of it.

    Args:
        number: of the step.
        of_examples: (q, b) derivatives by the weights of its examples' losses.
        of_pace: derivatives by its pace.
    """

    number: int
    of_examples: Tensor
    of_pace: OfPace


class Replay:
    """A training carried out, and gone through again backwards.

    Args:
        recipe: of the training.
        memory: bytes that states of the training may take, and as many again what is told of them: with less than all
            need, states are computed again, from ever shorter stretches, and queries are gone through some at a time.
        dtype: of weights and moments; None: the model's, or float32 where that has fewer digits.
        exact: derivatives as they are, not steadied.
        dose: of every step (see dataworth.tasks.training.optimizers).
        on_step: called after every step, forwards and backwards.
    """

    def __init__(
        self,
        recipe: Recipe,
        memory: int = 2**31,
        dtype: torch.dtype | None = None,
        *,
        exact: bool = False,
        dose: float = 1.0,
        on_step: Callable[[], object] = lambda: None,
    ) -> None:
        self.recipe, self.dose, self._exact, self._on_step = recipe, dose, exact, on_step
        named = dict(recipe.model.named_parameters())
        self._shapes = {name: named[name].shape for name in recipe.trained}
        dtype = dtype or torch.promote_types(named[recipe.trained[0]].dtype, torch.float32)
        start = torch.cat([named[name].detach().flatten().to(dtype) for name in recipe.trained])
        others = {**named, **dict(recipe.model.named_buffers())}
        self._others = {
            name: one.detach().to(dtype) if one.is_floating_point() else one.detach()
            for name, one in others.items()
            if name not in self._shapes
        }
        moments = tuple(torch.zeros_like(start) for _ in range(recipe.optimizer.n_moments))
        self._start = State(start, moments)
        entries = len(start) * (1 + len(moments))
        self._room = max(1, memory // (start.element_size() * entries))
        self._at_once = max(1, memory // (ADJOINT_BYTES * entries))
        self._noise: list[tuple[Tensor, Tensor | None]] = []
        with _mode(recipe.model, trains=True):
            self._last = self._forward()

    def weights(self) -> dict[str, Tensor]:
        """By name, after the training."""
        return self._unflattened(self._last.weights)

    def losses(self, queries: Examples) -> Float[np.ndarray, " q"]:
        """(n_queries,) nats of the trained model."""
        with torch.no_grad(), _mode(self.recipe.model, trains=False):
            return np.array(
                [
                    float(self.recipe.reads(self._call(self._last.weights), queries, np.array([number])).losses().sum())
                    for number in range(queries.n_examples)
                ]
            )

    def derivatives(self, queries: Examples) -> Float[np.ndarray, "q n"]:
        """(n_queries, n_examples) derivatives of the queries' losses by the weights of the examples', at 1.

        Args:
            queries: that the trained model is asked.
        """
        found = torch.zeros(queries.n_examples, self.recipe.examples.n_examples, dtype=torch.float64)
        for chunk, told in self.told(queries):
            found[chunk].index_add_(1, torch.from_numpy(self.recipe.steps[told.number].numbers), told.of_examples)
        return found.numpy()

    def passes(self, n_queries: int) -> int:
        """How often the training is gone through for queries, there and back."""
        return 1 + -(-n_queries // self._at_once)

    def told(self, queries: Examples) -> Iterator[tuple[slice, Told]]:
        """What every step tells of some of the queries, from the last step to the first; then of the next queries.

        Args:
            queries: that the trained model is asked.
        """
        for chunk in torch.arange(queries.n_examples).split(self._at_once):
            adjoint = self._asked(queries, chunk.numpy())
            with _mode(self.recipe.model, trains=True):
                for number, before in self._backwards(0, len(self.recipe.steps), self._start, self._room):
                    adjoint, told = self._step_back(number, before, adjoint)
                    yield slice(int(chunk[0]), int(chunk[-1]) + 1), told
                    self._on_step()

    def _asked(self, queries: Examples, numbers: np.ndarray) -> State:
        """Adjoints of the state at the end, for some queries: in float64, as they are made of large differences."""
        at = self._last.weights.clone().requires_grad_(True)
        rows = torch.empty(len(numbers), len(at), dtype=torch.float64, device=at.device)
        with sdpa_kernel(SDPBackend.MATH), _mode(self.recipe.model, trains=False):
            for row, number in enumerate(numbers):
                loss = self.recipe.reads(self._call(at), queries, np.array([number])).losses().sum()
                rows[row] = torch.autograd.grad(loss, at)[0]
        return State(rows, tuple(torch.zeros_like(rows) for _ in self._last.moments))

    def _forward(self) -> State:
        state = self._start
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)
            for number in range(len(self.recipe.steps)):
                self._noise.append(self._drawing())
                state = self._stepped(number, state)
                self._on_step()
        return state

    def _stepped(self, number: int, state: State) -> State:
        gradient = self._gradient(number, state.weights)
        return self.recipe.optimizer.step(state, self.recipe.clipping(gradient), self._pace(number))

    def _pace(self, number: int) -> Pace:
        """Of a step."""
        return Pace(self.recipe.steps[number].rate, self.dose * (number + 1), self.dose)

    def _gradient(self, number: int, weights: Tensor) -> Tensor:
        """Of a step's loss, at weights."""
        step = self.recipe.steps[number]
        total = torch.zeros_like(weights)
        for part in step.parts:
            at = weights.clone().requires_grad_(True)
            with sdpa_kernel(SDPBackend.MATH):
                loss = self.recipe.reads(self._call(at), self.recipe.examples, part).losses().sum() / step.divisor
            total += torch.autograd.grad(loss, at)[0]
        return total

    def _backwards(self, first: int, end: int, state: State, room: int) -> Iterator[tuple[int, State]]:
        """The steps' numbers and the states before them, from the last of a stretch to its first.

        Args:
            first, end: of the stretch.
            state: before its first step.
            room: states that may be held; at least one a halving is.
        """
        if end - first <= max(1, room):
            states = list(itertools.islice(self._forwards(first, state), end - first))
            while states:
                yield first + len(states) - 1, states.pop()
            return
        middle = (first + end) // 2
        half_way = next(itertools.islice(self._forwards(first, state), middle - first, None))
        yield from self._backwards(middle, end, half_way, room - 1)
        del half_way
        yield from self._backwards(first, middle, state, room)

    def _forwards(self, number: int, state: State) -> Iterator[State]:
        """A state, and those after each further step."""
        while True:
            yield state
            with self._same_noise(number):
                state = self._stepped(number, state)
            number += 1

    def _step_back(self, number: int, before: State, after: State) -> tuple[State, Told]:
        """Adjoints of the state before a step, and what they tell of its examples and its pace."""
        step, recipe, pace = self.recipe.steps[number], self.recipe, self._pace(number)
        of_part, floor = (_Hessian, 0.0) if self._exact else (_GaussNewton, FLOOR)
        with self._same_noise(number), sdpa_kernel(SDPBackend.MATH):
            parts = [of_part(self._call, recipe, part, before.weights, step.divisor) for part in step.parts]
        gradient = torch.stack([part.gradient for part in parts]).sum(dim=0).double()
        precise = State(before.weights.double(), tuple(moment.double() for moment in before.moments))
        clipped = recipe.clipping(gradient)
        adjoint, of_clipped = recipe.optimizer.adjoint(precise, clipped, pace, after, floor)
        of_pace = recipe.optimizer.of_pace(precise, clipped, pace, after, floor)
        weights, of_examples = adjoint.weights, []
        outers = recipe.clipping.adjoint(gradient, of_clipped).to(before.weights.dtype)
        for part in parts:
            along = [part.along(outer) for outer in outers]
            weights += torch.stack([further for further, _ in along])
            of_examples.append(torch.stack([each for _, each in along]))
        told = Told(number, torch.cat(of_examples, dim=1).double().cpu(), of_pace)
        back = State(weights, adjoint.moments)
        return (back if self._exact else _no_longer(back, after)), told

    def _call(self, weights: Tensor) -> Call:
        """The model with other trained weights."""
        tensors = {**self._others, **self._unflattened(weights)}

        def call(*arguments: Any, **named: Any) -> Any:
            return functional_call(self.recipe.model, tensors, arguments, named)

        return call

    def _unflattened(self, weights: Tensor) -> dict[str, Tensor]:
        sizes = [math.prod(shape) for shape in self._shapes.values()]
        parts = weights.split(sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def _drawing(self) -> tuple[Tensor, Tensor | None]:
        """The state of what draws dropout, of the processor and of the device."""
        device = self._start.weights.device
        return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def _same_noise(self, number: int) -> Iterator[None]:
        """Dropout draws what it drew at a step."""
        of_processor, of_device = self._noise[number]
        with torch.random.fork_rng():
            torch.set_rng_state(of_processor)
            if of_device is not None:
                torch.cuda.set_rng_state(of_device, self._start.weights.device)
            yield


@contextmanager
def _mode(model: nn.Module, trains: bool) -> Iterator[None]:
    """With dropout in the block, or without."""
    before = model.training
    model.train(trains)
    try:
        yield
    finally:
        model.train(before)


def _no_longer(adjoint: State, than: State) -> State:
    """Adjoints with each row shortened to the length that its weights' part has in others."""
    lengths, longest = (state.weights.norm(dim=1, keepdim=True) for state in (adjoint, than))
    factor = torch.where(lengths > longest, longest / lengths, 1.0)
    return State(factor * adjoint.weights, tuple(factor * moment for moment in adjoint.moments))


class _Hessian:
    """The loss of a part of a step, and its second derivatives.

    Args:
        call_with: a call of the model with weights.
        recipe: of the training.
        numbers: of the part's examples.
        weights: before the step.
        divisor: of the sum of losses.
    """

    def __init__(
        self, call_with: Callable[[Tensor], Call], recipe: Recipe, numbers: np.ndarray, weights: Tensor, divisor: float
    ) -> None:
        self._at = weights.clone().requires_grad_(True)
        self._of_one = torch.ones(len(numbers), dtype=weights.dtype, device=weights.device, requires_grad=True)
        outputs = recipe.reads(call_with(self._at), recipe.examples, numbers)
        loss = (self._of_one[outputs.owners] * outputs.losses()).sum() / divisor
        (self._gradient,) = torch.autograd.grad(loss, self._at, create_graph=True)
        self.gradient = self._gradient.detach()

    def along(self, outer: Tensor) -> tuple[Tensor, Tensor]:
        """The curvature times a vector (p,), and what each example's loss rises along it (b,)."""
        further, of_examples = torch.autograd.grad(self._gradient, (self._at, self._of_one), outer, retain_graph=True)
        return further, of_examples


class _GaussNewton:
    """The loss of a part of a step, and its curvature where the model is taken as linear in its weights.

    Args:
        call_with, recipe, numbers, weights, divisor: see `_Hessian`.
    """

    def __init__(
        self, call_with: Callable[[Tensor], Call], recipe: Recipe, numbers: np.ndarray, weights: Tensor, divisor: float
    ) -> None:
        self._at = weights.clone().requires_grad_(True)
        self._divisor, self._n_examples = divisor, len(numbers)
        outputs = recipe.reads(call_with(self._at), recipe.examples, numbers)
        counts = outputs.targets != IGNORED
        self._logits, self._owners = outputs.logits[counts], outputs.owners[counts]
        precise = self._logits.detach().to(torch.promote_types(self._logits.dtype, torch.float32))
        self._chances = precise.softmax(-1)
        self._slopes = self._chances.clone()  # of every target's loss by its logits
        self._slopes[torch.arange(len(precise)), outputs.targets[counts]] -= 1.0
        # A vector times the Jacobian is linear in the vector: its own derivative is the Jacobian times another one.
        self._any = torch.zeros_like(self._logits, requires_grad=True)
        (self._taken_back,) = torch.autograd.grad(self._logits, self._at, self._any, create_graph=True)
        self.gradient = self._back(self._slopes)

    def along(self, outer: Tensor) -> tuple[Tensor, Tensor]:
        """The curvature times a vector (p,), and what each example's loss rises along it (b,)."""
        (moved,) = torch.autograd.grad(self._taken_back, self._any, outer, retain_graph=True)
        spread = self._chances * moved
        further = self._back(spread - self._chances * spread.sum(-1, keepdim=True))
        of_examples = torch.zeros(self._n_examples, dtype=moved.dtype, device=moved.device)
        of_examples.index_add_(0, self._owners, (self._slopes * moved).sum(-1))
        return further, of_examples / self._divisor

    def _back(self, of_logits: Tensor) -> Tensor:
        """The Jacobian's transpose times a derivative by the logits, over the divisor."""
        given = (of_logits / self._divisor).to(self._logits.dtype)
        found: Tensor = torch.autograd.grad(self._logits, self._at, given, retain_graph=True)[0]
        return found
