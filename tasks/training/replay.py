"""Exact derivatives of what a training came to, with respect to the weight of every example in its losses.

A training is carried out step by step as a function, and gone through again from its end: reverse-mode
differentiation through every step of the optimiser (Ilyas & Engstrom 2025, arXiv 2503.13751, 2504.16430). All
outcomes go back together, on one graph a step.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from dataworth.tasks.corpus.examples import Examples
from dataworth.tasks.training.optimizers import Clipping, Optimizer, State

__all__ = ["Call", "Recipe", "Replay", "Step"]

Call = Callable[..., Any]
# (b,) losses in nats of some of the examples, by number, under a call of the model.
Losses = Callable[[Call, Examples, np.ndarray], Float[Tensor, " b"]]


@dataclass(frozen=True)
class Step:
    """A step of a training.

    Args:
        parts: numbers of its examples, by what is computed at once: several where gradients are accumulated.
        rate: of learning.
        divisor: of the sum of the examples' losses.
    """

    parts: tuple[np.ndarray, ...]
    rate: float
    divisor: float


@dataclass(frozen=True)
class Recipe:
    """A training that can be carried out again.

    Args:
        model: where it begins; its weights are left as they are.
        trained: names of the weights that are trained, shared ones once.
        steps: in their order.
        examples: that it trains on.
        losses: of them, and of others that the model is asked about.
        optimizer: of the steps.
        clipping: of their gradients.
        seed: of dropout.
    """

    model: nn.Module
    trained: tuple[str, ...]
    steps: Sequence[Step]
    examples: Examples
    losses: Losses
    optimizer: Optimizer
    clipping: Clipping
    seed: int = 0


class Replay:
    """A training carried out, and gone through again backwards.

    Args:
        recipe: of the training.
        memory: bytes that states of the training may take; with less than all of them need, some are computed again.
        dtype: of weights and moments; None: the model's, or float32 where that has fewer digits.
    """

    def __init__(self, recipe: Recipe, memory: int = 2**31, dtype: torch.dtype | None = None) -> None:
        self.recipe = recipe
        named = dict(recipe.model.named_parameters())
        self._shapes = {name: named[name].shape for name in recipe.trained}
        dtype = dtype or torch.promote_types(named[recipe.trained[0]].dtype, torch.float32)
        start = torch.cat([named[name].detach().flatten().to(dtype) for name in recipe.trained])
        self._others = {name: one.detach().to(dtype) for name, one in named.items() if name not in self._shapes}
        self._others |= {
            name: one.to(dtype) if one.is_floating_point() else one for name, one in recipe.model.named_buffers()
        }
        moments = tuple(torch.zeros_like(start) for _ in range(recipe.optimizer.n_moments))
        state_bytes = start.element_size() * len(start) * (1 + len(moments))
        n_states = max(2, memory // state_bytes)
        n_steps = len(recipe.steps)
        # With states kept every s steps, s more are held while their stretch is gone through again.
        self._every = 1 if n_states > n_steps else max(1, math.ceil(n_steps / max(1, n_states // 2)))
        self._noise: list[tuple[Tensor, Tensor | None]] = []
        self._kept = {0: State(start, moments)}
        with _mode(recipe.model, trains=True):
            self._last = self._forward()

    def weights(self) -> dict[str, Tensor]:
        """By name, after the training."""
        return self._unflattened(self._last.weights)

    def derivatives(self, queries: Examples) -> Float[np.ndarray, "q n"]:
        """(n_queries, n_examples) derivatives of the queries' losses by the weights of the examples', at 1.

        Args:
            queries: that the trained model is asked.
        """
        adjoint = self._asked(queries)
        found = torch.zeros(queries.n_examples, self.recipe.examples.n_examples, dtype=torch.float64)
        with _mode(self.recipe.model, trains=True):
            for number, before in self._backwards():
                adjoint = self._step_back(number, before, adjoint, found)
        return found.numpy()

    def _asked(self, queries: Examples) -> State:
        """Adjoints of the state at the end."""
        at = self._last.weights.clone().requires_grad_(True)
        rows = torch.empty(queries.n_examples, len(at), dtype=at.dtype, device=at.device)
        with sdpa_kernel(SDPBackend.MATH), _mode(self.recipe.model, trains=False):
            for number in range(queries.n_examples):
                loss = self.recipe.losses(self._call(at), queries, np.array([number])).sum()
                rows[number] = torch.autograd.grad(loss, at)[0]
        return State(rows, tuple(torch.zeros_like(rows) for _ in self._last.moments))

    def _forward(self) -> State:
        state = self._kept[0]
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)
            for number in range(len(self.recipe.steps)):
                self._noise.append(self._drawing())
                if number % self._every == 0:
                    self._kept[number] = state
                state = self._stepped(number, state)
        return state

    def _stepped(self, number: int, state: State) -> State:
        gradient = self._gradient(number, state.weights)
        return self.recipe.optimizer.step(
            state, self.recipe.clipping(gradient), self.recipe.steps[number].rate, number + 1
        )

    def _gradient(self, number: int, weights: Tensor) -> Tensor:
        """Of a step's loss, at weights."""
        step = self.recipe.steps[number]
        total = torch.zeros_like(weights)
        for part in step.parts:
            at = weights.clone().requires_grad_(True)
            with sdpa_kernel(SDPBackend.MATH):
                loss = self.recipe.losses(self._call(at), self.recipe.examples, part).sum() / step.divisor
            total += torch.autograd.grad(loss, at)[0]
        return total

    def _backwards(self) -> Iterator[tuple[int, State]]:
        """Every step's number and the state before it, from the last."""
        end = len(self.recipe.steps)
        while end > 0:
            first = (end - 1) // self._every * self._every
            states = [self._kept[first]]
            for number in range(first, end - 1):
                with self._same_noise(number):
                    states.append(self._stepped(number, states[-1]))
            for number in range(end - 1, first - 1, -1):
                yield number, states.pop()
            end = first

    def _step_back(self, number: int, before: State, after: State, found: Tensor) -> State:
        """Adjoints of the state before a step; what the step's examples did is added to `found`."""
        step, recipe = self.recipe.steps[number], self.recipe
        graphs = []
        with self._same_noise(number), sdpa_kernel(SDPBackend.MATH):
            for part in step.parts:
                at = before.weights.clone().requires_grad_(True)
                by_one = torch.ones(len(part), dtype=at.dtype, device=at.device, requires_grad=True)
                loss = (by_one * recipe.losses(self._call(at), recipe.examples, part)).sum() / step.divisor
                graphs.append((part, at, by_one, torch.autograd.grad(loss, at, create_graph=True)[0]))
        gradient = torch.stack([graph[3].detach() for graph in graphs]).sum(dim=0)
        clipped = recipe.clipping(gradient)
        adjoint, of_clipped = recipe.optimizer.adjoint(before, clipped, step.rate, number + 1, after)
        of_gradient = recipe.clipping.adjoint(gradient, of_clipped)
        weights = adjoint.weights
        for part, at, by_one, own in graphs:
            for row, outer in enumerate(of_gradient):
                further, of_examples = torch.autograd.grad(own, (at, by_one), outer, retain_graph=True)
                weights[row] += further
                found[row].index_add_(0, torch.from_numpy(part), of_examples.double().cpu())
        return State(weights, adjoint.moments)

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
        device = self._kept[0].weights.device
        return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def _same_noise(self, number: int) -> Iterator[None]:
        """Dropout draws what it drew at a step."""
        of_processor, of_device = self._noise[number]
        with torch.random.fork_rng():
            torch.set_rng_state(of_processor)
            if of_device is not None:
                torch.cuda.set_rng_state(of_device, self._kept[0].weights.device)
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
