"""Scores of one block of rows, and their sums over the windows of a document."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int

__all__ = ["Preconditioned", "Whitening", "Whitenings", "document_sums", "self_influence", "window_scores"]

PIECE_ROWS = 1024
_THREAD = threading.local()


@runtime_checkable
class Whitening(Protocol):
    """What self-influence needs of a layer's curvature (see tasks.curvature.precondition)."""

    def whitened(self, gradients: np.ndarray) -> np.ndarray:
        """(H + lambda I)^-1/2 g up to a rotation."""


# Per layer its columns, and None where the curvature is the identity.
Whitenings = Sequence[tuple[slice, Whitening | None]]


@dataclass(frozen=True)
class Preconditioned:
    """What a worker needs to score rows: the queries, and the whitening of each layer where rows are normalised.

    Args:
        queries: (n_queries, n_columns) float32, (H + lambda I)^-1 applied.
        whitening: of every layer; None for `dot`.
    """

    queries: np.ndarray
    whitening: Whitenings | None


def self_influence(rows: Float[np.ndarray, "n c"], whitening: Whitenings) -> Float[np.ndarray, " n"]:
    """g^T (H + lambda I)^-1 g for each row, summed over layers; float32 products, float64 sums.

    Args:
        rows: (n, n_columns).
        whitening: of every layer.
    """
    total = np.zeros(len(rows))
    for columns, layer in whitening:
        block = rows[:, columns].astype(np.float32)
        whitened = block if layer is None else layer.whitened(block)
        total += np.einsum("nk,nk->n", whitened, whitened, dtype=np.float64)
    return total


def _in_float32(rows: np.ndarray) -> torch.Tensor:
    """The rows in float32, converted into memory that this thread keeps for the next shard.

    torch converts float16 five times as fast as numpy; fresh memory would double that time again in page faults.
    """
    found = torch.from_numpy(rows)
    if found.dtype == torch.float32:
        return found
    room = getattr(_THREAD, "room", None)
    if room is None or room.numel() < found.numel():
        room = _THREAD.room = torch.empty(found.numel())
    return room[: found.numel()].view(found.shape).copy_(found)


def window_scores(rows: Float[np.ndarray, "n c"], preconditioned: Preconditioned) -> Float[np.ndarray, "q n"]:
    """Influence of each row on each query: g(q)^T (H + lambda I)^-1 g(z), float64 values of float32 products.

    Positive means that training on z lowered q's loss. With whitening, divided by the square root of the row's
    self-influence (l-RelatIF: Barshan et al. 2020, arXiv 2003.11630); a row of zeros scores 0.
    """
    queries = torch.from_numpy(preconditioned.queries)
    if preconditioned.whitening is None and len(rows) > PIECE_ROWS:
        # A piece is still in the processor's cache when it is multiplied.
        pieces = (rows[first : first + PIECE_ROWS] for first in range(0, len(rows), PIECE_ROWS))
        return torch.cat([torch.mm(queries, _in_float32(piece).T) for piece in pieces], dim=1).double().numpy()
    precise = _in_float32(rows)
    scores = torch.mm(queries, precise.T).double().numpy()
    if preconditioned.whitening is None:
        return scores
    norms = np.sqrt(self_influence(precise.numpy(), preconditioned.whitening))
    return np.divide(scores, norms, out=np.zeros_like(scores), where=norms > 0)


def document_sums(scores: Float[np.ndarray, "q n"], first_rows: Int[np.ndarray, " d"]) -> Float[np.ndarray, "q d"]:
    """Sums over consecutive rows that belong together.

    Args:
        scores: (q, n).
        first_rows: (d,) increasing, where each group starts; the last ends at n.
    """
    if len(first_rows) == 0:
        return np.zeros((len(scores), 0))
    if len(first_rows) == scores.shape[1]:
        return scores
    return np.add.reduceat(scores, first_rows, axis=1)
