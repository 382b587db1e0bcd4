"""What is kept of all scores: the best and worst documents of each query, and sums by source. Mergeable.

Merging in the order of the blocks gives the same bytes whoever computed the blocks.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

__all__ = ["Floors", "Ranking", "Tally", "block_tally", "floors", "merged_tally", "ranking"]
TORCH_ENTRIES = 2**17

# (n_queries,) each: of the best and of the worst documents
Floors = tuple[np.ndarray, np.ndarray]


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
    scores: Float[np.ndarray, "q d"],
    documents: Int[np.ndarray, "q d"],
    k: int,
    *,
    descending: bool,
    floor: Float[np.ndarray, " q"] | None = None,
) -> Ranking:
    """The k best of each query; equal scores in the order of the document numbers.

    Args:
        scores: NaN marks a place without a document.
        documents: the numbers, -1 where there is none.
        k: how many are kept.
        descending: best is largest; else smallest.
        floor: what k documents elsewhere have reached already: worse ones are not kept. NaN where there is none.
    """
    n_queries, n = scores.shape
    kept = np.full((n_queries, k), -1, np.int64)
    values = np.full((n_queries, k), np.nan)
    if n == 0:
        return Ranking(kept, values)
    limit = np.full(n_queries, np.inf)
    if floor is not None:
        limit = np.where(np.isnan(floor), np.inf, -floor if descending else floor)
    # Where a pass is under way, few queries have a document here that is still among their best.
    best = -np.fmax.reduce(scores, axis=1) if descending else np.fmin.reduce(scores, axis=1)
    rows = np.flatnonzero(best <= limit)
    scores, documents, limit = scores[rows], documents[rows], limit[rows]
    keys = -scores if descending else scores
    unlimited = np.flatnonzero(np.isinf(limit))
    if n > k and len(unlimited):
        # Everything at least as good as the k-th: few enough to sort, and no tie is cut off by chance. NaN sorts last.
        limit[unlimited] = np.partition(keys[unlimited], k - 1, axis=1)[:, k - 1]
        limit[np.isnan(limit)] = np.inf
    queries, places = np.divmod(np.flatnonzero((keys <= limit[:, None]) & (documents >= 0)), n)
    order = np.lexsort((documents[queries, places], keys[queries, places], queries))
    queries, places = queries[order], places[order]
    ranks = np.arange(len(queries)) - np.searchsorted(queries, queries)
    queries, places, ranks = queries[ranks < k], places[ranks < k], ranks[ranks < k]
    kept[rows[queries], ranks] = documents[queries, places]
    values[rows[queries], ranks] = scores[queries, places]
    return Ranking(kept, values)


def block_tally(
    scores: Float[np.ndarray, "q d"],
    documents: Int[np.ndarray, " d"],
    sources: Int[np.ndarray, " d"],
    n_sources: int,
    k: int,
    floors: Floors | None = None,
) -> Tally:
    """Statistics of one block of documents.

    Args:
        scores: (n_queries, n_documents).
        documents: their numbers.
        sources: number of each document's source.
        n_sources: sources in all.
        k: documents kept a query.
        floors: what the best and the worst k have reached elsewhere (see `floors`).
    """
    numbers = np.broadcast_to(documents, scores.shape)
    sums, squares = _by_source(scores, sources, n_sources)
    top, bottom = floors or (None, None)
    return Tally(
        top=ranking(scores, numbers, k, descending=True, floor=top),
        bottom=ranking(scores, numbers, k, descending=False, floor=bottom),
        sums=sums,
        squares=squares,
        counts=np.bincount(sources, minlength=n_sources),
    )


def _by_source(scores: np.ndarray, sources: np.ndarray, n_sources: int) -> tuple[np.ndarray, np.ndarray]:
    """(n_queries, n_sources) sums of the scores and of their squares.

    Large blocks go through torch, which is twice as fast and lets other threads work meanwhile.
    """
    if scores.size < TORCH_ENTRIES:
        pairs = [(np.bincount(sources, row, n_sources), np.bincount(sources, row * row, n_sources)) for row in scores]
        return np.stack([one for one, _ in pairs]), np.stack([two for _, two in pairs])
    import torch

    values, places = torch.from_numpy(scores), torch.from_numpy(sources)
    total = torch.zeros(len(scores), n_sources, dtype=torch.float64)
    return total.index_add(1, places, values).numpy(), total.index_add(1, places, values * values).numpy()


def floors(tally: Tally) -> Floors:
    """What a document must reach to be kept beside those of a tally, NaN where fewer than k are kept yet."""
    return tally.top.scores[:, -1], tally.bottom.scores[:, -1]


def merged_tally(first: Tally, second: Tally) -> Tally:
    """Statistics of both sets of documents, which must be disjoint."""

    def merged(one: Ranking, other: Ranking, *, descending: bool) -> Ranking:
        news = np.flatnonzero(other.documents[:, 0] >= 0)
        found = ranking(
            np.concatenate([one.scores[news], other.scores[news]], axis=1),
            np.concatenate([one.documents[news], other.documents[news]], axis=1),
            one.documents.shape[1],
            descending=descending,
        )
        documents, scores = one.documents.copy(), one.scores.copy()
        documents[news], scores[news] = found.documents, found.scores
        return Ranking(documents, scores)

    return Tally(
        top=merged(first.top, second.top, descending=True),
        bottom=merged(first.bottom, second.bottom, descending=False),
        sums=first.sums + second.sums,
        squares=first.squares + second.squares,
        counts=first.counts + second.counts,
    )
