"""Scores of one block of rows, and their sums over the windows of a document."""

import threading
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dataworth.tasks.curvature.precondition import Inverses, self_influence

__all__ = ["Preconditioned", "document_sums", "window_scores"]

PIECE_ROWS = 512
TORCH_ENTRIES = 2**20
_THREAD = threading.local()


@dataclass(frozen=True)
class Preconditioned:
    """What a worker needs to score rows: the queries, and the damped inverses where rows are normalised.

    Args:
        queries: (n_queries, n_columns) float32, (H + lambda I)^-1 applied.
        relative: the inverses of the layers that count; None for `dot`.
    """

    queries: np.ndarray
    relative: Inverses | None


def _product(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(q, n) float32 products of queries with rows of any float type.

    Large blocks go through torch, which converts float16 five times as fast as numpy, piece by piece, so that a piece
    is still in the processor's cache when it is multiplied. A worker that sees none of them never loads torch.
    """
    if rows.size < TORCH_ENTRIES:
        return queries @ rows.astype(np.float32).T
    import torch

    room = getattr(_THREAD, "room", None)
    if room is None or room.shape[1] != rows.shape[1]:
        # Fresh memory for every piece would cost as much as converting it.
        room = _THREAD.room = torch.empty(PIECE_ROWS, rows.shape[1])
    # The library's kernels round differently at different addresses, and what a worker received may lie anywhere.
    ready = torch.empty(queries.shape).copy_(torch.from_numpy(queries))
    products = torch.empty(len(queries), len(rows))
    for first in range(0, len(rows), PIECE_ROWS):
        piece = torch.from_numpy(rows[first : first + PIECE_ROWS])
        products[:, first : first + len(piece)] = torch.mm(ready, room[: len(piece)].copy_(piece).T)
    scores: np.ndarray = products.numpy()
    return scores


def window_scores(rows: Float[np.ndarray, "n c"], preconditioned: Preconditioned) -> Float[np.ndarray, "q n"]:
    """Influence of each row on each query: g(q)^T (H + lambda I)^-1 g(z), float32 products.

    Positive means that training on z lowered q's loss. With inverses, divided by the square root of the row's
    self-influence (l-RelatIF: Barshan et al. 2020, arXiv 2003.11630), float64; a row of zeros scores 0.
    """
    scores = _product(preconditioned.queries, rows)
    if preconditioned.relative is None:
        return scores
    norms = np.sqrt(self_influence(rows, preconditioned.relative))
    return np.divide(scores, norms, out=np.zeros(scores.shape), where=norms > 0)


def document_sums(scores: Float[np.ndarray, "q n"], first_rows: Int[np.ndarray, " d"]) -> Float[np.ndarray, "q d"]:
    """Sums over consecutive rows that belong together, float64; the scores themselves where each is alone.

    Args:
        scores: (q, n).
        first_rows: (d,) increasing, where each group starts; the last ends at n.
    """
    if len(first_rows) == 0:
        return np.zeros((len(scores), 0))
    if len(first_rows) == scores.shape[1]:
        return scores
    return np.add.reduceat(scores, first_rows, axis=1, dtype=np.float64)
