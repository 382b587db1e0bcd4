"""Cheap rankings to hold beside influence: BM25, and the size of a source."""

import logging
from collections.abc import Sequence

import bm25s
import numpy as np
from jaxtyping import Float

__all__ = ["bm25_scores", "first_rate", "source_sums"]

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it is at DEBUG by itself, and writes into a run's log


def bm25_scores(documents: Sequence[str], queries: Sequence[str]) -> Float[np.ndarray, "q n"]:
    """BM25 of every document for every query (Robertson et al.; Lucene's variant, k1 = 1.5, b = 0.75).

    Args:
        documents: their texts.
        queries: their texts.
    """
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(list(documents), stopwords="en", show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(list(queries), stopwords="en", show_progress=False, return_ids=False)
    return np.stack([np.asarray(retriever.get_scores(query), np.float64) for query in tokens])


def source_sums(
    scores: Float[np.ndarray, "q n"], sources: Sequence[str], names: Sequence[str]
) -> Float[np.ndarray, "q s"]:
    """Scores added up by source.

    Args:
        scores: of documents.
        sources: source of each document.
        names: the sources, in the order of the columns.
    """
    place = {name: number for number, name in enumerate(names)}
    sums = np.zeros((len(scores), len(names)))
    np.add.at(sums.T, [place[source] for source in sources], scores.T)
    return sums


def first_rate(values: Float[np.ndarray, "q s"], names: Sequence[str], own: Sequence[str]) -> float:
    """Share of queries whose own source has the largest value; ties go to the first name."""
    first = np.argmax(values, axis=1)
    return float(np.mean([names[number] == source for number, source in zip(first, own, strict=True)]))
