"""What is kept of all scores: the best and worst documents of each query, and sums by source. Mergeable.

Merging in the order of the blocks gives the same bytes whoever computed the blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

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
        documents: the numbers, -1 where there is none, with a score of NaN.
        k: how many are kept.
        descending: best is largest; else smallest.
        floor: what k documents elsewhere have reached already: worse ones are not kept. NaN where there is none.
    """
    n_queries, n = scores.shape
    kept = np.full((n_queries, k), -1, np.int64)
    values = np.full((n_queries, k), np.nan)
    if n == 0:
        return Ranking(kept, values)
    # In terms of scores: what is worse than the limit is not kept.
    limit = np.full(n_queries, np.nan) if floor is None else floor
    if scores.dtype == np.float32:
        # Compared in the scores' own type, a hair below the floor: what is kept in vain falls when tallies are merged.
        limit = np.nextafter(limit.astype(np.float32), np.float32(-np.inf if descending else np.inf))
    reaches = np.greater_equal if descending else np.less_equal
    best = (np.fmax if descending else np.fmin).reduce(scores, axis=1)
    # Where a pass is under way, few queries have a document here that is still among their best.
    rows = np.flatnonzero(reaches(best, limit) | np.isnan(limit))
    scores, limit = scores[rows], limit[rows]
    unlimited = np.flatnonzero(np.isnan(limit))
    if n > k and len(unlimited):
        # Everything at least as good as the k-th: few enough to sort, and no tie is cut off by chance. NaN sorts last.
        keys = -scores[unlimited] if descending else scores[unlimited]
        kth = np.partition(keys, k - 1, axis=1)[:, k - 1]
        limit[unlimited] = -kth if descending else kth
    limit = np.where(np.isnan(limit), -np.inf if descending else np.inf, limit)
    queries, places = np.divmod(np.flatnonzero(reaches(scores, limit[:, None])), n)  # NaN reaches nothing
    keys = -scores[queries, places] if descending else scores[queries, places]
    order = np.lexsort((documents[rows[queries], places], keys, queries))
    queries, places = queries[order], places[order]
    ranks = np.arange(len(queries)) - np.searchsorted(queries, queries)
    queries, places, ranks = queries[ranks < k], places[ranks < k], ranks[ranks < k]
    kept[rows[queries], ranks] = documents[rows[queries], places]
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
        scores = scores.astype(np.float64)
        pairs = [(np.bincount(sources, row, n_sources), np.bincount(sources, row * row, n_sources)) for row in scores]
        return np.stack([one for one, _ in pairs]), np.stack([two for _, two in pairs])
    import torch

    values, places = torch.from_numpy(scores).double(), torch.from_numpy(sources)
    total = torch.zeros(len(scores), n_sources, dtype=torch.float64)
    sums = total.index_add(1, places, values)
    return sums.numpy(), total.index_add_(1, places, values.square_()).numpy()


def floors(tally: Tally) -> Floors:
    """What a document must reach to be kept beside those of a tally, NaN where fewer than k are kept yet."""
    return tally.top.scores[:, -1], tally.bottom.scores[:, -1]


def merged_tally(tallies: Sequence[Tally]) -> Tally:
    """Statistics of several sets of documents, which must be disjoint; sums are taken in the given order."""

    def merged(rankings: Sequence[Ranking], *, descending: bool) -> Ranking:
        first = rankings[0]
        news = np.flatnonzero(np.any([other.documents[:, 0] >= 0 for other in rankings[1:]], axis=0))
        ranked = ranking(
            np.concatenate([each.scores[news] for each in rankings], axis=1),
            np.concatenate([each.documents[news] for each in rankings], axis=1),
            first.documents.shape[1],
            descending=descending,
        )
        documents, scores = first.documents.copy(), first.scores.copy()
        documents[news], scores[news] = ranked.documents, ranked.scores
        return Ranking(documents, scores)

    if len(tallies) == 1:
        return tallies[0]
    return Tally(
        top=merged([tally.top for tally in tallies], descending=True),
        bottom=merged([tally.bottom for tally in tallies], descending=False),
        sums=reduce(np.add, [tally.sums for tally in tallies]),
        squares=reduce(np.add, [tally.squares for tally in tallies]),
        counts=reduce(np.add, [tally.counts for tally in tallies]),
    )
