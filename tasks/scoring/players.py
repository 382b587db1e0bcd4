"""Who is scored: documents numbered by id, so that ties go by id, and players (sources, or groups) by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

__all__ = ["Players", "chosen_sources", "players"]


@dataclass(frozen=True)
class Players:
    """The documents that are scored, and who is valued for them: sources, or groups of another kind.

    Args:
        chosen: (n_corpus,) bool: the corpus' document is scored.
        rows: (n_documents,) row in the corpus of each document number.
        numbers: (n_corpus,) document number of each row; -1 where it is not scored.
        sources: (n_documents,) player of each document number.
        names: the players.
        n_documents, n_tokens: (n_sources,).
    """

    chosen: np.ndarray
    rows: np.ndarray
    numbers: np.ndarray
    sources: np.ndarray
    names: list[str]
    n_documents: np.ndarray
    n_tokens: np.ndarray


def chosen_sources(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> set[str]:
    """Sources whose name matches a pattern of `include` (none: every name) and none of `exclude`.

    Raises:
        ValueError: a pattern matches no source, or no source is left.
    """
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"the pattern {pattern!r} matches none of the corpus' {len(names)} sources")
    chosen = {
        name
        for name in names
        if (not include or any(fnmatchcase(name, pattern) for pattern in include))
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not chosen:
        raise ValueError(f"no source is left out of the corpus' {len(names)}")
    return chosen


def players(ids: Sequence[str], groups: Sequence[str], n_tokens: np.ndarray, chosen: np.ndarray) -> Players:
    """Number the documents that are scored.

    Args:
        ids, groups: (n_corpus,) of each document, and the player it belongs to.
        n_tokens: (n_corpus,).
        chosen: (n_corpus,) bool, the documents to score.
    """
    order = np.argsort(np.asarray(ids, dtype=object), kind="stable")
    rows = order[chosen[order]]
    numbers = np.full(len(ids), -1, np.int64)
    numbers[rows] = np.arange(len(rows))
    names, indices = np.unique(np.asarray(groups, dtype=object)[rows], return_inverse=True)
    return Players(
        chosen=chosen,
        rows=rows,
        numbers=numbers,
        sources=indices,
        names=[str(name) for name in names],
        n_documents=np.bincount(indices, minlength=len(names)),
        n_tokens=np.bincount(indices, n_tokens[rows], len(names)).astype(np.int64),
    )
