"""The mean of several matrices of scores, a chunk at a time."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

__all__ = ["Matrix", "mean_blocks"]


@runtime_checkable
class Matrix(Protocol):
    """A stored matrix of scores (see dataworth.storage.scores)."""

    @property
    def document_ids(self) -> Sequence[str]:
        """(n_documents,) names of the columns."""

    @property
    def columns_per_chunk(self) -> int:
        """Columns that are stored together."""

    def columns(self, numbers: Int[np.ndarray, " n"]) -> Float[np.ndarray, "q n"]:
        """Scores of some documents."""


def mean_blocks(
    matrices: Sequence[Matrix], weights: Sequence[float] | None = None
) -> Iterator[tuple[Float[np.ndarray, "q n"], list[str]]]:
    """The mean of some matrices and its documents, chunk by chunk of the first: float64, of one chunk at a time.

    The columns of the others may be in another order, as their gradients may have been stored in another one. Where
    they are, a chunk of the mean is gathered from all chunks that hold some of it.

    Args:
        matrices: at least one; the same queries, in the same order, and the same documents.
        weights: of each; None: all the same.

    Raises:
        ValueError: they are not of the same documents.
    """
    ids = list(matrices[0].document_ids)
    orders = [_order(ids, list(each.document_ids)) for each in matrices]
    step, weights = matrices[0].columns_per_chunk, weights or [1.0] * len(matrices)
    for start in range(0, len(ids), step):
        parts = zip(weights, matrices, orders, strict=True)
        total = sum(w * each.columns(order[start : start + step]).astype(np.float64) for w, each, order in parts)
        yield np.asarray(total / sum(weights)), ids[start : start + step]


def _order(wanted: list[str], there: list[str]) -> np.ndarray:
    """(n_documents,) column of each wanted document."""
    if there == wanted:
        return np.arange(len(wanted))
    place = {name: number for number, name in enumerate(there)}
    if len(there) != len(wanted) or any(name not in place for name in wanted):
        raise ValueError("the scores are not of the same documents")
    return np.fromiter((place[name] for name in wanted), np.int64, len(wanted))
