"""What a Dask worker runs. Apart from task.py the one module of the room that knows a store, so that a worker does not
have to import Prefect."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from storage.gradients import Segment
from tasks.scoring.blocks import Preconditioned, document_sums, window_scores
from tasks.scoring.plan import ShardWork
from tasks.scoring.tally import Tally, block_tally

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


def score_shard(
    work: ShardWork,
    preconditioned: Preconditioned,
    sources: np.ndarray,
    n_sources: int,
    k: int,
    *,
    keep_block: bool,
    threads: int,
) -> ShardScores:
    """Read, check and score one shard.

    Args:
        work: the shard and its documents.
        preconditioned: the queries.
        sources: (n_documents of the corpus,) source of every document number.
        n_sources: sources in all.
        k: documents kept a query.
        keep_block: return the scores themselves, too.
        threads: BLAS threads of this worker.

    Raises:
        StoreDamagedError, StoreIncompleteError: the shard cannot be read.
    """
    rows = Segment(Path(work.segment)).read_shard(work.shard)
    with threadpool_limits(threads):
        sums = document_sums(window_scores(rows, preconditioned), work.first_rows)
    whole = work.whole[work.positions]
    block = sums[:, work.positions[whole]]
    documents = work.documents[whole]
    split = np.unique(work.positions[~whole])
    return ShardScores(
        tally=block_tally(block, documents, sources[documents], n_sources, k),
        partial={work.first_content + int(position): sums[:, position] for position in split},
        block=block if keep_block else None,
        documents=documents,
    )
