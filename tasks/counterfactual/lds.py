"""The linear datamodeling score, its standard errors, paired differences, and the noise ceiling of the truth.

Source: Park et al. 2023 (arXiv 2303.14186), definition 2.1: Spearman's correlation, over subsets of the training set,
between what scores add up to and what training on the subset did; the mean over queries.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

__all__ = ["Agreement", "ceiling", "difference", "lds", "predicted", "rank_correlations"]


@dataclass(frozen=True)
class Agreement:
    """A mean over queries, with what is needed for its errors.

    Args:
        by_query: (q,) one number a query.
        without: (m, q) the same numbers with each subset left out in turn.
    """

    by_query: np.ndarray
    without: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.by_query.mean()) if len(self.by_query) else float("nan")

    @property
    def error_queries(self) -> float:
        """Standard error from the queries that happened to be asked; NaN of a single one."""
        n = len(self.by_query)
        return float(self.by_query.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")

    @property
    def error_subsets(self) -> float:
        """Standard error from the subsets that happened to be drawn: the delete-one jackknife (Efron & Stein 1981)."""
        m = len(self.without)
        means = self.without.mean(axis=1)
        return float(np.sqrt((m - 1) / m * ((means - means.mean()) ** 2).sum())) if m > 1 else float("nan")

    @property
    def standard_error(self) -> float:
        """Over subsets and queries: the root of the sum of both variances, which counts what they share twice."""
        return float(np.hypot(self.error_queries, self.error_subsets))


def predicted(scores: Float[np.ndarray, "q n"], masks: Bool[np.ndarray, "m n"]) -> Float[np.ndarray, "q m"]:
    """What scores add up to over the members of each subset."""
    return scores @ masks.T.astype(np.float64)


def rank_correlations(one: Float[np.ndarray, "q m"], two: Float[np.ndarray, "q m"]) -> Float[np.ndarray, " q"]:
    """Spearman's correlation of each pair of rows; 0 where one of them says nothing, being constant."""
    ranks = [rankdata(rows, axis=1) - (rows.shape[1] + 1) / 2 for rows in (one, two)]
    products = (ranks[0] * ranks[1]).sum(axis=1)
    lengths = np.sqrt((ranks[0] ** 2).sum(axis=1) * (ranks[1] ** 2).sum(axis=1))
    return np.divide(products, lengths, out=np.zeros(len(products)), where=lengths > 0)


def lds(prediction: Float[np.ndarray, "q m"], outcome: Float[np.ndarray, "q m"]) -> Agreement:
    """The linear datamodeling score.

    Args:
        prediction: of each query after training on each subset; only its order over the subsets counts.
        outcome: what was measured, larger where the model is better: minus the loss, a mean over seeds.

    Raises:
        ValueError: fewer than three subsets, of which one can be left out.
    """
    if prediction.shape[1] < 3:
        raise ValueError(f"a rank correlation with an error needs at least 3 subsets, got {prediction.shape[1]}")
    return Agreement(rank_correlations(prediction, outcome), _without_each(prediction, outcome))


def difference(one: Agreement, two: Agreement) -> Agreement:
    """The first less the second, paired by query and by subset: what both have in common falls out of its errors."""
    return Agreement(one.by_query - two.by_query, one.without - two.without)


def ceiling(outcomes: Float[np.ndarray, "r q m"]) -> Agreement:
    """What a prediction of the expected outcome, without any error, could reach at most: the truth itself is noisy.

    The correlation r of two seeds tells the reliability of a mean of R seeds, R r / (1 + (R - 1) r), whose root is the
    correlation of that mean with the expectation (Spearman 1910; Brown 1910), here of ranks.

    Args:
        outcomes: of each of R seeds, at least two.

    Raises:
        ValueError: a single seed, which tells nothing about its noise.
    """
    n_seeds = len(outcomes)
    if n_seeds < 2:
        raise ValueError("a noise ceiling needs at least 2 seeds")
    pairs = [(outcomes[i], outcomes[j]) for i in range(n_seeds) for j in range(i)]
    whole = np.mean([rank_correlations(one, two) for one, two in pairs], axis=0)
    without = np.mean([_without_each(one, two) for one, two in pairs], axis=0)
    return Agreement(_reached(whole, n_seeds), _reached(without, n_seeds))


def _reached(alike: np.ndarray, n_seeds: int) -> np.ndarray:
    """Root of the reliability of the mean over seeds; 0 where seeds do not agree at all."""
    alike = np.maximum(alike, 0.0)
    roots: np.ndarray = np.sqrt(n_seeds * alike / (1 + (n_seeds - 1) * alike))
    return roots


def _without_each(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """(m, q) rank correlations with each column left out in turn."""
    return np.stack([_row_without_each(a, b) for a, b in zip(one, two, strict=True)], axis=1)


def _row_without_each(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """(m,): the ranks of the others fall by one above what is left out, and by a half beside its equals."""
    centred = []
    for row in (one, two):
        above = (row[None] > row[:, None]) + 0.5 * (row[None] == row[:, None])
        ranks = rankdata(row)[None] - above - len(row) / 2
        np.fill_diagonal(ranks, 0.0)
        centred.append(ranks)
    products = (centred[0] * centred[1]).sum(axis=1)
    lengths = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    return np.divide(products, lengths, out=np.zeros(len(products)), where=lengths > 0)
