"""The interface of every method of attribution."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
from jaxtyping import Float

from dataworth.tasks.corpus.examples import Examples
from dataworth.tasks.model.plain import Model

__all__ = ["Attributor", "Scorer", "SingleModelAttributor"]

# From queries to (n_queries, n_examples) scores.
Scorer = Callable[[Examples], Float[np.ndarray, "q n"]]


class Attributor(ABC):
    """Scores of training examples for queries; a positive one says that training on the example lowered the loss.

    Scores of the examples of a subset add up to what the method predicts for the subset.
    """

    @abstractmethod
    def fit(self, models: Sequence[Model], examples: Examples) -> Self:
        """Learn what is needed of the training examples.

        Args:
            models: checkpoints trained on the examples, or one; what several mean is the method's own.
            examples: the training examples.
        """

    @abstractmethod
    def score(self, queries: Examples) -> Float[np.ndarray, "q n"]:
        """(n_queries, n_examples) scores, float64, in the order of both.

        Raises:
            ValueError: nothing is fitted yet.
        """


class SingleModelAttributor(Attributor):
    """A method of one model; the scores of several are averaged."""

    def __init__(self) -> None:
        self._scorers: list[Scorer] = []

    @abstractmethod
    def scorer(self, model: Model, examples: Examples) -> Scorer:
        """The method fitted to one model."""

    def fit(self, models: Sequence[Model], examples: Examples) -> Self:
        """Fit each model by itself."""
        self._scorers = [self.scorer(model, examples) for model in models]
        return self

    def score(self, queries: Examples) -> Float[np.ndarray, "q n"]:
        """The mean over the models."""
        if not self._scorers:
            raise ValueError("fit the method before it scores")
        scores: Float[np.ndarray, "q n"] = np.mean([scorer(queries) for scorer in self._scorers], axis=0)
        return scores
