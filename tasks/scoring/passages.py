"""The tables of a score store: passages of the documents that are kept, parts of their scores, sums by source."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.curvature.precondition import self_influence
from dataworth.tasks.scoring.blocks import Preconditioned, window_scores
from dataworth.tasks.scoring.players import Players
from dataworth.tasks.scoring.ready import ReadyPass
from dataworth.tasks.scoring.tally import Tally

__all__ = ["passages", "source_sums"]


@dataclass(frozen=True)
class _Kept:
    """A place in the tally: sign 1 among the best, -1 among the worst; place 0 is the first."""

    query: int
    sign: int
    place: int
    document: int
    score: float


@dataclass(frozen=True)
class _Measured:
    """What one pass tells of the kept documents.

    Args:
        windows: (n_kept,) the telling window, counted from the document's first.
        relative: (n_kept,) scores relative to self-influence; NaN where no gradient was kept to tell it of.
        layers: (n_kept, n_layers) each layer's part of the score; no columns where they are not asked for.
        names: of the layers.
    """

    windows: np.ndarray
    relative: np.ndarray
    layers: np.ndarray
    names: list[str]


def passages(
    tally: Tally,
    corpus: CorpusStore,
    players: Players,
    passes: Iterable[ReadyPass],
    query_ids: Sequence[str],
    *,
    by_layer: bool,
    weights: Sequence[float] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Rows of PASSAGES of dataworth.storage.schema, and of LAYER_SCORES where they are asked for.

    Of each query the best documents (rank 1, 2, …), then the worst (rank -1, -2, …). Of several passes the telling
    window is that of the first; relative scores and the layers' parts are means.

    Args:
        tally: of all documents, by the mean of the passes.
        corpus, players: who is scored.
        passes: one a checkpoint, of the same queries; one is held at a time. With `by_layer` of layers of the same
            names.
        query_ids: of the tally's rows.
        by_layer: also each layer's part.
        weights: of the passes in a mean; None: all the same.
    """
    kept = list(_kept(tally))
    measured = [_measured(kept, each, each.rows_of_kept(tally), by_layer=by_layer) for each in passes]
    relative = np.average([each.relative for each in measured], axis=0, weights=weights)
    table = _passage_rows(kept, corpus, players, measured[0].windows, relative, query_ids)
    if not by_layer:
        return table, None
    layers = np.average([each.layers for each in measured], axis=0, weights=weights)
    common = [{key: row[key] for key in ("query_id", "rank", "document_id")} for row in table]
    parts = [
        {**row, "layer": name, "score": float(score)}
        for row, scores in zip(common, layers, strict=True)
        for name, score in zip(measured[0].names, scores, strict=True)
    ]
    return table, parts


def _passage_rows(
    kept: Sequence[_Kept],
    corpus: CorpusStore,
    players: Players,
    windows: np.ndarray,
    relative: np.ndarray,
    query_ids: Sequence[str],
) -> list[dict[str, Any]]:
    numbers = sorted({each.document for each in kept})
    documents = dict(zip(numbers, corpus.documents(players.rows[numbers]), strict=True))
    table = []
    for each, window, beside in zip(kept, windows, relative, strict=True):
        telling = int(corpus.first_windows[players.rows[each.document]]) + int(window)
        start = int(corpus.windows["character_start"][telling])
        end = int(corpus.windows["character_end"][telling])
        document = documents[each.document]
        table.append(
            {
                "query_id": query_ids[each.query],
                "rank": each.sign * (each.place + 1),
                "document_id": document["document_id"],
                "source": document["source"],
                "score": each.score,
                "relative_score": float(beside),
                "window_start": start,
                "text": document["text"][start:end],
            }
        )
    return table


def _kept(tally: Tally) -> Iterator[_Kept]:
    """The best, then the worst documents of every query."""
    for sign, ranking in ((1, tally.top), (-1, tally.bottom)):
        for query in range(len(ranking.documents)):
            for place in np.flatnonzero(ranking.documents[query] >= 0):
                number, score = int(ranking.documents[query, place]), float(ranking.scores[query, place])
                yield _Kept(query, sign, int(place), number, score)


def _measured(
    kept: Sequence[_Kept], ready: ReadyPass, by_number: dict[int, np.ndarray], *, by_layer: bool
) -> _Measured:
    windows, relative = np.zeros(len(kept), np.int64), np.full(len(kept), np.nan)
    layers = np.zeros((len(kept), len(ready.layers) if by_layer else 0))
    for number, each in enumerate(kept):
        rows, query = by_number[each.document], ready.queries.queries[each.query : each.query + 1]
        by_window = window_scores(rows, Preconditioned(query, ready.queries.relative))[0]
        windows[number] = np.argmax(each.sign * by_window)
        if ready.gradients.along is None:
            relative[number] = window_scores(rows, Preconditioned(query, ready.inverses))[0].sum() * ready.divided_by
        if by_layer:
            layers[number] = _layer_scores(rows.astype(np.float32), query[0], ready)
    return _Measured(windows, relative, layers, [layer.name for layer in ready.layers])


def _layer_scores(rows: np.ndarray, query: np.ndarray, ready: ReadyPass) -> list[float]:
    """What each layer gave to a document's score; they add up to it."""
    norms = np.ones(len(rows))
    if ready.queries.relative is not None:
        norms = np.sqrt(self_influence(rows, ready.queries.relative))
    weights = np.divide(1.0, norms, out=np.zeros(len(rows)), where=norms > 0)
    columns = [layer.columns for layer in ready.layers]
    return [float(weights @ (rows[:, own] @ query[own]).astype(np.float64)) for own in columns]


def source_sums(tally: Tally, players: Players, query_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of SOURCE_SUMS of dataworth.storage.schema."""
    return [
        {
            "query_id": query_id,
            "source": name,
            "sum": float(tally.sums[row, number]),
            "sum_of_squares": float(tally.squares[row, number]),
            "n_documents": int(players.n_documents[number]),
            "n_tokens": int(players.n_tokens[number]),
        }
        for row, query_id in enumerate(query_ids)
        for number, name in enumerate(players.names)
    ]
