"""Which documents a model is trained on again."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["followed_queries", "random_subsets", "tuning_split", "without_best", "without_each_source"]


def random_subsets(n_documents: int, count: int, fraction: float, seed: int) -> Bool[np.ndarray, "m n"]:
    """Subsets of one size, drawn without replacement, each independent of the others.

    The first of more subsets are those of fewer, so that an audit can be made longer.

    Args:
        n_documents: to draw from.
        count: m.
        fraction: share of the documents in a subset; at least one is in and one is out.
        seed: of the draw.

    Raises:
        ValueError: fewer than two documents.
    """
    if n_documents < 2:
        raise ValueError(f"subsets need at least 2 documents, got {n_documents}")
    size = min(n_documents - 1, max(1, round(fraction * n_documents)))
    masks = np.zeros((count, n_documents), bool)
    for number, mask in enumerate(masks):
        mask[np.random.default_rng([seed, number]).permutation(n_documents)[:size]] = True
    return masks


def without_each_source(sources: Sequence[str]) -> tuple[list[str], Bool[np.ndarray, "s n"]]:
    """Names of the sources, and for each everybody but its documents."""
    names = sorted(set(sources))
    of = np.asarray(sources, object)
    return names, np.array([of != name for name in names], bool).reshape(len(names), len(sources))


def without_best(
    scores: Float[np.ndarray, "q n"], queries: Int[np.ndarray, " k"], share: float
) -> Bool[np.ndarray, "k n"]:
    """Everybody but a query's best documents, at least one; ties go to the first.

    Args:
        scores: of documents.
        queries: numbers of the queries.
        share: of the documents.
    """
    n = scores.shape[1]
    count = min(n, max(1, round(share * n)))
    masks = np.ones((len(queries), n), bool)
    for mask, query in zip(masks, queries, strict=True):
        mask[np.argsort(-scores[query], kind="stable")[:count]] = False
    return masks


def tuning_split(
    n_subsets: int, n_queries: int, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(subsets, queries) to choose settings on, and the others to report on: no subset and no query is in both.

    Args:
        n_subsets, n_queries: to be split in halves.
        seed: of the split.

    Raises:
        ValueError: a half has fewer than three subsets or no query.
    """
    if n_subsets < 6 or n_queries < 2:
        raise ValueError(f"tuning needs at least 6 subsets and 2 queries, got {n_subsets} and {n_queries}")
    generator = np.random.default_rng(seed)
    halves = [np.sort(part) for n in (n_subsets, n_queries) for part in _halves(generator.permutation(n))]
    return (halves[0], halves[2]), (halves[1], halves[3])


def _halves(order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return order[: len(order) // 2], order[len(order) // 2 :]


def followed_queries(reported: Sequence[int], count: int) -> list[int]:
    """The queries that are followed through removal and steps, evenly among those that are reported on."""
    places = np.linspace(0, len(reported) - 1, min(count, len(reported))).round().astype(np.int64)
    return [reported[place] for place in np.unique(places)]
