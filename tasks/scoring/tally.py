"""What is kept of all scores: the best and worst documents of each query, and sums by source. Mergeable.

Merging in the order of the blocks gives the same bytes whoever computed the blocks.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

__all__ = ["Ranking", "Tally", "block_tally", "merged_tally", "ranking"]


@dataclass(frozen=True)
class Ranking:
    """The documents with the largest keys for each query, best first; -1 fills a row with fewer documents.

    Args:
        documents: (n_queries, k) numbers.
        scores: (n_queries, k) float64; NaN where there is no document.
    """

    documents: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Tally:
    """Statistics of some documents' scores.

    Args:
        top, bottom: the k documents with the largest and the smallest score of each query; ties by document number.
        sums: (n_queries, n_sources) float64 sum of scores.
        squares: (n_queries, n_sources) float64 sum of squared scores.
        counts: (n_sources,) int64 documents scored.
    """

    top: Ranking
    bottom: Ranking
    sums: np.ndarray
    squares: np.ndarray
    counts: np.ndarray


def ranking(
    scores: Float[np.ndarray, "q d"], documents: Int[np.ndarray, "q d"], k: int, *, descending: bool
) -> Ranking:
    """The k best of each query; equal scores in the order of the document numbers.

    Args:
        scores: NaN marks a place without a document.
        documents: the numbers, -1 where there is none.
        k: how many are kept.
        descending: best is largest; else smallest.
    """
    n_queries, n = scores.shape
    kept = np.full((n_queries, k), -1, np.int64)
    values = np.full((n_queries, k), np.nan)
    keys = np.where(documents < 0, np.inf, -scores if descending else scores)
    for query in range(n_queries):
        candidates = np.arange(n)
        if n > k:
            # Everything at least as good as the k-th: few enough to sort, and no tie is cut off by chance.
            candidates = np.flatnonzero(keys[query] <= np.partition(keys[query], k - 1)[k - 1])
        order = candidates[np.lexsort((documents[query, candidates], keys[query, candidates]))][:k]
        order = order[documents[query, order] >= 0]
        kept[query, : len(order)] = documents[query, order]
        values[query, : len(order)] = scores[query, order]
    return Ranking(kept, values)


def block_tally(
    scores: Float[np.ndarray, "q d"],
    documents: Int[np.ndarray, " d"],
    sources: Int[np.ndarray, " d"],
    n_sources: int,
    k: int,
) -> Tally:
    """Statistics of one block of documents.

    Args:
        scores: (n_queries, n_documents).
        documents: their numbers.
        sources: number of each document's source.
        n_sources: sources in all.
        k: documents kept a query.
    """
    numbers = np.broadcast_to(documents, scores.shape)
    sums = np.zeros((len(scores), n_sources))
    squares = np.zeros_like(sums)
    for query, row in enumerate(scores):
        sums[query] = np.bincount(sources, row, n_sources)
        squares[query] = np.bincount(sources, row * row, n_sources)
    return Tally(
        top=ranking(scores, numbers, k, descending=True),
        bottom=ranking(scores, numbers, k, descending=False),
        sums=sums,
        squares=squares,
        counts=np.bincount(sources, minlength=n_sources),
    )


def merged_tally(first: Tally, second: Tally) -> Tally:
    """Statistics of both sets of documents, which must be disjoint."""

    def merged(one: Ranking, other: Ranking, *, descending: bool) -> Ranking:
        return ranking(
            np.concatenate([one.scores, other.scores], axis=1),
            np.concatenate([one.documents, other.documents], axis=1),
            one.documents.shape[1],
            descending=descending,
        )

    return Tally(
        top=merged(first.top, second.top, descending=True),
        bottom=merged(first.bottom, second.bottom, descending=False),
        sums=first.sums + second.sums,
        squares=first.squares + second.squares,
        counts=first.counts + second.counts,
    )
