"""Merging the shards' results in order, and completing documents whose rows lie in several shards."""

from collections.abc import Callable, Mapping

import numpy as np

from dataworth.tasks.scoring.plan import ShardWork
from dataworth.tasks.scoring.tally import Floors, Tally, block_tally, floors, merged_tally

__all__ = ["Combination"]

MERGED_TOGETHER = 8

BlockSink = Callable[[np.ndarray, np.ndarray], None]


class Combination:
    """The tally of all shards so far.

    Args:
        sources: (n_documents,) source of every document number.
        n_sources: sources in all.
        n_queries: rows of the scores.
        k: documents kept a query.
        sink: given every block of scores (n_queries, n) with its document numbers (n,), if all scores are to be kept.
    """

    def __init__(self, sources: np.ndarray, n_sources: int, n_queries: int, k: int, sink: BlockSink | None) -> None:
        self._sources = sources
        self._n_sources = n_sources
        self._k = k
        self._sink = sink
        self._open: dict[tuple[str, int], np.ndarray] = {}
        self._merged: Tally = self._block(np.zeros((n_queries, 0)), np.empty(0, np.int64))
        self._waiting: list[Tally] = []

    @property
    def tally(self) -> Tally:
        """Of everything added."""
        self._merged, self._waiting = merged_tally([self._merged, *self._waiting]), []
        return self._merged

    @property
    def reached(self) -> Floors:
        """What a document must reach to be kept; a few shards behind, since several are merged at a time."""
        return floors(self._merged)

    def _block(self, scores: np.ndarray, documents: np.ndarray) -> Tally:
        return block_tally(scores, documents, self._sources[documents], self._n_sources, self._k)

    def add(
        self,
        work: ShardWork,
        tally: Tally,
        partial: Mapping[int, np.ndarray],
        block: np.ndarray | None,
        documents: np.ndarray,
    ) -> None:
        """Merge one shard; shards of a segment must come in order.

        Args:
            work: the shard.
            tally: of the documents that are whole in it.
            partial: content number in the segment → (n_queries,) sum over the rows that are in it.
            block, documents: scores of the whole documents, and their numbers.
        """
        self._merge(tally, block, documents)
        for content, scores in partial.items():
            key = (work.segment, content)
            self._open[key] = self._open[key] + scores if key in self._open else scores
            position = content - work.first_content
            if work.ends[position]:
                joined = work.documents[work.positions == position]
                columns = np.repeat(self._open.pop(key)[:, None], len(joined), axis=1)
                self._merge(self._block(columns, joined), columns, joined)

    def add_whole(self, block: np.ndarray, documents: np.ndarray) -> None:
        """Merge (n_queries, n) scores of documents none of which comes in parts, and their numbers (n,)."""
        tally = block_tally(block, documents, self._sources[documents], self._n_sources, self._k, self.reached)
        self._merge(tally, block, documents)

    def _merge(self, tally: Tally, block: np.ndarray | None, documents: np.ndarray) -> None:
        self._waiting.append(tally)
        if len(self._waiting) >= MERGED_TOGETHER:
            self._merged = self.tally
        if self._sink is not None and block is not None:
            self._sink(block, documents)
