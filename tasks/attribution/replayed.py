"""What the weight of an example in the training did to the queries: exact derivatives of the training itself.

Source: Ilyas & Engstrom 2025 (arXiv 2504.16430).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

import numpy as np
from jaxtyping import Float

from dataworth.tasks.attribution.attributor import Attributor
from dataworth.tasks.corpus.examples import Examples
from dataworth.tasks.model.plain import Model
from dataworth.tasks.training.recipes import Recipe
from dataworth.tasks.training.replay import Replay

__all__ = ["RecipeOf", "ReplayedTraining"]

# The recipe of a training, by the seed of its order.
RecipeOf = Callable[[int], Recipe]


class ReplayedTraining(Attributor):
    """Minus the derivative of a query's loss by the weight of an example's: what is lost where it is left out, nats.

    The models it is given are ignored: the recipe is carried out again, once a seed, and the mean is taken.

    Args:
        recipe: of the training.
        seeds: of the orders.
    """

    def __init__(self, recipe: RecipeOf, seeds: Sequence[int]) -> None:
        self._recipe, self._seeds = recipe, list(seeds)
        self._replays: list[Replay] = []

    def fit(self, models: Sequence[Model], examples: Examples) -> Self:
        """Carry the trainings out."""
        self._replays = [Replay(replace(self._recipe(seed), examples=examples)) for seed in self._seeds]
        return self

    def score(self, queries: Examples) -> Float[np.ndarray, "q n"]:
        """The mean over the seeds."""
        if not self._replays:
            raise ValueError("fit the method before it scores")
        scores: Float[np.ndarray, "q n"] = -np.mean([each.derivatives(queries) for each in self._replays], axis=0)
        return scores
