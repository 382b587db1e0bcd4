"""Values of documents by training again without them: the truth that other methods estimate, where it can be paid for.

Sources: leave-one-out, Cook 1977; truncated Monte Carlo Shapley, Ghorbani & Zou 2019 (arXiv 1904.02868), algorithm 1.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
from jaxtyping import Bool, Float

from dataworth.tasks.attribution.attributor import Attributor
from dataworth.tasks.corpus.examples import Examples
from dataworth.tasks.model.plain import Model

__all__ = ["LeaveOneOut", "Outcome", "RetrainedAttributor", "TruncatedMonteCarloShapley", "permutation_gains"]

# From which documents are trained on, (m, n_documents), to the losses of the queries afterwards, (m, n_queries) nats.
Outcome = Callable[[np.ndarray], np.ndarray]


class RetrainedAttributor(Attributor):
    """A method that asks for trainings; the models it is given are ignored.

    A document's value is divided evenly among its examples, so that they add up to it.

    Args:
        outcome: trains on some documents, and says the losses of its queries, which are those to be scored, in the
            same order.
    """

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._scores: np.ndarray | None = None

    @abstractmethod
    def values(self, n_documents: int) -> Float[np.ndarray, "q d"]:
        """What each document is worth to each query of the outcome, nats of its loss."""

    def fit(self, models: Sequence[Model], examples: Examples) -> Self:
        """Train as often as the method has to."""
        values = self.values(examples.n_documents)
        windows = np.bincount(examples.documents, minlength=examples.n_documents)
        self._scores = values[:, examples.documents] / windows[examples.documents]
        return self

    def score(self, queries: Examples) -> Float[np.ndarray, "q n"]:
        """The values that were found.

        Raises:
            ValueError: nothing is fitted, or the outcome is that of another number of queries.
        """
        if self._scores is None:
            raise ValueError("fit the method before it scores")
        if len(self._scores) != queries.n_examples:
            raise ValueError(f"the outcome tells the losses of {len(self._scores)} queries, got {queries.n_examples}")
        return self._scores.copy()


class LeaveOneOut(RetrainedAttributor):
    """Loss without the document minus loss with everything; one training more than documents.

    Args:
        outcome: see RetrainedAttributor.
    """

    def values(self, n_documents: int) -> Float[np.ndarray, "q d"]:
        """The difference, of all documents."""
        masks = np.concatenate([~np.eye(n_documents, dtype=bool), np.ones((1, n_documents), bool)])
        losses = losses_after(self.outcome, masks)
        differences: Float[np.ndarray, "q d"] = (losses[:-1] - losses[-1]).T
        return differences


class TruncatedMonteCarloShapley(RetrainedAttributor):
    """Data Shapley from marginal contributions in drawn orders, each order given up once little is left to gain.

    Args:
        outcome: see RetrainedAttributor.
        permutations: orders drawn, at least 2; each costs up to a training for each document but the last.
        tolerance: an order ends where no query's loss is this far, in nats, from that after training on everything;
            the documents left are worth nothing in it. 0: never.
        seed: of the orders.

    Attributes:
        standard_errors: (n_queries, n_documents) of the values, from their spread over the orders; None before a fit.
            The bias of truncation, at most the tolerance, is not in them.
    """

    def __init__(self, outcome: Outcome, permutations: int, tolerance: float = 0.0, seed: int = 0) -> None:
        super().__init__(outcome)
        if permutations < 2 or tolerance < 0:
            raise ValueError(
                f"expected 2 permutations or more and a tolerance of 0 or more, got {permutations} and {tolerance}"
            )
        self.permutations, self.tolerance, self.seed = permutations, tolerance, seed
        self.standard_errors: np.ndarray | None = None

    def values(self, n_documents: int) -> Float[np.ndarray, "q d"]:
        """The mean over the orders."""
        generator = np.random.default_rng(self.seed)
        orders = np.array([generator.permutation(n_documents) for _ in range(self.permutations)])
        gains = permutation_gains(self.outcome, orders, self.tolerance)
        self.standard_errors = (gains.std(axis=0, ddof=1) / np.sqrt(self.permutations)).T
        mean_gains: Float[np.ndarray, "q d"] = gains.mean(axis=0).T
        return mean_gains


def losses_after(outcome: Outcome, masks: Bool[np.ndarray, "m d"]) -> Float[np.ndarray, "m q"]:
    """Losses of the queries after training on some documents, float64.

    Raises:
        ValueError: the outcome gives no row a coalition.
    """
    losses = np.asarray(outcome(masks), np.float64)
    if losses.ndim != 2 or len(losses) != len(masks):
        raise ValueError(f"expected (coalitions, queries) losses of {len(masks)} coalitions, got shape {losses.shape}")
    return losses


def permutation_gains(outcome: Outcome, orders: np.ndarray, tolerance: float) -> Float[np.ndarray, "p d q"]:
    """By how much each document, added in each order, lowered each query's loss.

    All orders go ahead side by side, so that an outcome may train several coalitions at once.

    Args:
        outcome: losses after training on some documents; that on none and that on all are asked for once.
        orders: (p, d) permutations of the documents.
        tolerance: of truncation, nats; see TruncatedMonteCarloShapley.
    """
    n_orders, n_documents = orders.shape
    nothing, everything = losses_after(outcome, np.repeat([[False], [True]], n_documents, axis=1))
    gains = np.zeros((n_orders, n_documents, len(everything)))
    masks = np.zeros((n_orders, n_documents), bool)
    losses = np.tile(nothing, (n_orders, 1))
    active = np.arange(n_orders)
    for place in range(n_documents):
        active = active[~_near(losses[active], everything, tolerance)]
        if not len(active):
            break
        added = orders[active, place]
        masks[active, added] = True
        after = np.tile(everything, (len(active), 1))
        if place < n_documents - 1:
            after = losses_after(outcome, masks[active])
        gains[active, added] = losses[active] - after
        losses[active] = after
    return gains


def _near(
    losses: Float[np.ndarray, "p q"], everything: Float[np.ndarray, " q"], tolerance: float
) -> Bool[np.ndarray, " p"]:
    near: Bool[np.ndarray, " p"] = (np.abs(losses - everything) < tolerance).all(axis=1)
    return near
