"""What a Dask worker runs. Apart from task.py the one module of the room that knows a store, so that a worker does not
have to import Prefect."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from threadpoolctl import ThreadpoolController

from dataworth.storage.segments import Segment
from dataworth.tasks.scoring.blocks import Preconditioned, document_sums, window_scores
from dataworth.tasks.scoring.plan import ShardWork
from dataworth.tasks.scoring.tally import Floors, Tally, block_tally

__all__ = ["ShardScores", "score_shard"]


@dataclass(frozen=True)
class ShardScores:
    """Result of one shard.

    Args:
        tally: of the documents that are whole in the shard.
        partial: content number in the segment → (n_queries,) sum over the rows that are here.
        block: (n_queries, n_documents) of the whole documents, if asked for, in the order of `documents`.
        documents: (n_documents,) their numbers.
    """

    tally: Tally
    partial: Mapping[int, np.ndarray]
    block: np.ndarray | None
    documents: np.ndarray


@lru_cache(maxsize=64)
def _segment(path: str) -> Segment:
    """A segment opened once: its manifest and its arrays' shapes never change."""
    return Segment(path)


@cache
def _libraries(with_torch: bool) -> ThreadpoolController:
    """The BLAS of this process, looked up once, and once more when torch has brought its own."""
    return ThreadpoolController()


@contextmanager
def _one_thread() -> Iterator[None]:
    """No library takes more than one thread: a worker's threads take a shard each."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else 1
    with _libraries(torch is not None).limit(limits=1):
        if torch is not None:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if torch is not None:
                torch.set_num_threads(before)


def score_shard(
    work: ShardWork,
    preconditioned: Preconditioned,
    sources: np.ndarray,
    n_sources: int,
    k: int,
    *,
    keep_block: bool,
    floors: Floors | None = None,
) -> ShardScores:
    """Read, check and score one shard.

    Args:
        work: the shard and its documents.
        preconditioned: the queries.
        sources: (n_documents of the corpus,) source of every document number.
        n_sources: sources in all.
        k: documents kept a query.
        keep_block: return the scores themselves, too.
        floors: what the best and the worst documents of other shards have reached.

    Raises:
        StoreDamagedError, StoreIncompleteError: the shard cannot be read.
    """
    rows = _segment(work.segment).read_shard(work.shard)
    whole = work.whole[work.positions]
    chosen = work.positions[whole]
    documents = work.documents[whole]
    split = np.unique(work.positions[~whole])
    with _one_thread():
        sums = document_sums(window_scores(rows, preconditioned), work.first_rows)
        every_one = len(chosen) == sums.shape[1] and bool((chosen == np.arange(len(chosen))).all())
        block = sums if every_one else sums[:, chosen]
        tally = block_tally(block, documents, sources[documents], n_sources, k, floors)
    return ShardScores(
        tally=tally,
        partial={work.first_content + int(position): sums[:, position].astype(np.float64) for position in split},
        block=block if keep_block else None,
        documents=documents,
    )
