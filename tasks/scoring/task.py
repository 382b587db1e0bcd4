"""Prefect task that scores every document for every query: one task that holds a Dask client."""

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task

from storage.corpus import CorpusStore
from storage.errors import DataworthError, InputError, StoreIncompleteError
from storage.gradients import GradientStore
from storage.layers import LayerStore
from storage.locations import StoreFolders
from storage.ref import StoreRef, fingerprint
from storage.schema import ALL_QUERIES
from storage.scores import ScoreStore, ScoreWriter
from tasks.curvature.config import DampingConfig
from tasks.curvature.precondition import Preconditioner, damped_inverse
from tasks.progress import progress, run_logger
from tasks.scoring.blocks import Preconditioned, Whitenings, self_influence, window_scores
from tasks.scoring.combination import Combination
from tasks.scoring.config import ClusterConfig, ScoringConfig
from tasks.scoring.plan import ShardWork, corpus_places, shard_works
from tasks.scoring.shards import ShardScores, score_shard
from tasks.scoring.tally import Tally

__all__ = ["score_corpus"]

ALGORITHM = 1
SHARDS_AHEAD = 4


@task(name="score-corpus", task_run_name="score every document for every query")
def score_corpus(
    store: str,
    corpus: StoreRef,
    gradients: StoreRef,
    queries: StoreRef,
    query_gradients: StoreRef,
    curvature: StoreRef | None,
    damping_config: DampingConfig,
    scoring: ScoringConfig,
    cluster: ClusterConfig,
) -> StoreRef:
    """One pass over the gradient store for all queries: top k, bottom k and sums by source, and the matrix on request.

    Raises:
        StoreDamagedError, StoreIncompleteError: a shard cannot be read.
        InputError: the curvature of a layer is zero under relative damping.
        DataworthError: the cluster lost its workers or cannot be reached.
    """
    parts = {
        "scores": ALGORITHM,
        "corpus": corpus.fingerprint,
        "gradients": gradients.fingerprint,
        "queries": queries.fingerprint,
        "query_gradients": query_gradients.fingerprint,
        "curvature": curvature.fingerprint if curvature else None,
        "damping": damping_config.model_dump() if curvature else None,
        **scoring.model_dump(),
    }
    root, name = StoreFolders(Path(store)).scores, fingerprint(parts)
    ref = StoreRef(kind="scores", location=str(root / name), fingerprint=name)
    if ScoreStore.exists(root, name):
        run_logger().info("scores %s are there already", name)
        return ref
    documents, query_store = CorpusStore.open(corpus), CorpusStore.open(queries)
    gradient_store = GradientStore.open(gradients)
    players = _players(documents)
    inverses = _inverses(curvature, damping_config)
    query_rows = np.concatenate(GradientStore.open(query_gradients).rows_of(query_store.contents))
    preconditioned = _preconditioned(query_rows, gradient_store.layers, inverses, scoring.kind)
    query_ids = [*query_store.column("document_id").to_pylist(), ALL_QUERIES]
    with ScoreStore.writing(root, name) as target:
        tally = _tally(
            gradient_store, documents, players, preconditioned, scoring, cluster, query_ids, target.matrix_path
        )
        whitening = _whitening(gradient_store.layers, inverses)
        passages = _passages(tally, players, documents, gradient_store, preconditioned, whitening, query_ids)
        target.write(passages, _source_sums(tally, players, query_ids), parts)
    return ref


@dataclass(frozen=True)
class _Players:
    """Documents numbered by id (so that ties go by id), and sources numbered by name.

    Args:
        rows: (n_documents,) row in the corpus of each document number.
        sources: (n_documents,) source of each document number.
        names: the sources.
        n_documents, n_tokens: (n_sources,).
    """

    rows: np.ndarray
    sources: np.ndarray
    names: list[str]
    n_documents: np.ndarray
    n_tokens: np.ndarray


def _players(corpus: CorpusStore) -> _Players:
    ids = np.asarray(corpus.column("document_id").to_pylist(), dtype=object)
    rows = np.argsort(ids, kind="stable")
    names, sources = np.unique(np.asarray(corpus.column("source").to_pylist(), dtype=object), return_inverse=True)
    n_tokens = np.bincount(sources, corpus.column("n_tokens").to_numpy(), len(names)).astype(np.int64)
    return _Players(rows, sources[rows], [str(name) for name in names], np.bincount(sources), n_tokens)


def _inverses(curvature: StoreRef | None, config: DampingConfig) -> dict[str, Preconditioner]:
    """The damped inverse of each layer's curvature; empty without a curvature."""
    inverses = {}
    if curvature is not None:
        fitted = LayerStore.open(curvature)
        for layer in fitted.layers:
            name = layer["name"]
            try:
                inverses[name] = damped_inverse({key: fitted.matrix(name, key) for key in fitted.names(name)}, config)
            except ValueError as error:
                raise InputError(f"layer {name}: {error}; pass --curvature.damping.rule absolute") from None
    return inverses


def _layer_columns(layers: Sequence[dict[str, Any]]) -> list[tuple[str, slice]]:
    return [
        (layer["name"], slice(layer["first_column"], layer["first_column"] + layer["n_columns"])) for layer in layers
    ]


def _whitening(layers: Sequence[dict[str, Any]], inverses: dict[str, Preconditioner]) -> Whitenings:
    return [(columns, inverses.get(name)) for name, columns in _layer_columns(layers)]


def _preconditioned(
    query_rows: np.ndarray, layers: Sequence[dict[str, Any]], inverses: dict[str, Preconditioner], kind: str
) -> Preconditioned:
    """(H + lambda I)^-1 applied to every query, and one row more: their sum, which stands for all queries."""
    rows = query_rows.astype(np.float64)
    for name, columns in _layer_columns(layers):
        if name in inverses:
            rows[:, columns] = inverses[name].applied(query_rows[:, columns])
    whitening = None if kind == "dot" else _whitening(layers, inverses)
    if kind == "cosine" and whitening is not None:
        norms = np.sqrt(self_influence(query_rows, whitening))
        rows = np.divide(rows, norms[:, None], out=np.zeros_like(rows), where=norms[:, None] > 0)
    rows = np.concatenate([rows, rows.sum(axis=0, keepdims=True)])
    return Preconditioned(rows.astype(np.float32), whitening)


@contextmanager
def _client(config: ClusterConfig, n_shards: int) -> Iterator[Any]:
    """A client of the scheduler at the address, else of a local cluster that ends with the block."""
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.WARNING)  # after the import, which sets its own level

    address = config.address or os.environ.get("DATAWORTH_DASK")
    if address:
        try:
            client = Client(address, timeout="20s", set_as_default=False)
        except (OSError, ValueError) as error:
            raise DataworthError(f"no Dask scheduler answers at {address} ({error or type(error).__name__})") from None
        with client:
            yield client
        return
    n_workers = config.workers or max(1, min(n_shards, os.cpu_count() or 1))
    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=config.threads or 1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _shard_results(
    client: Any,
    works: Sequence[ShardWork],
    preconditioned: Preconditioned,
    players: _Players,
    scoring: ScoringConfig,
    threads: int,
) -> Iterator[tuple[ShardWork, ShardScores]]:
    """Results in the order of the shards, a few shards ahead of the reader, so that memory stays bounded."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm.core import CommClosedError

    shared = client.scatter(preconditioned, broadcast=True, hash=False)
    sources = client.scatter(players.sources, broadcast=True, hash=False)
    n_ahead = SHARDS_AHEAD * max(1, len(client.scheduler_info()["workers"]))
    waiting: deque[tuple[ShardWork, Any]] = deque()
    todo = iter(works)
    try:
        for _ in works:
            for work in todo:
                future = client.submit(
                    score_shard,
                    work,
                    shared,
                    sources,
                    len(players.names),
                    scoring.top_k,
                    keep_block=scoring.save_matrix,
                    threads=threads,
                    pure=False,
                )
                waiting.append((work, future))
                if len(waiting) >= n_ahead:
                    break
            work, future = waiting.popleft()
            yield work, future.result()
    except KilledWorker as error:
        raise DataworthError(f"the Dask workers died while scoring, out of memory or killed ({error})") from error
    except (CancelledError, CommClosedError) as error:
        raise DataworthError("the Dask scheduler went away while scoring: run again once it is back") from error


def _tally(
    gradients: GradientStore,
    corpus: CorpusStore,
    players: _Players,
    preconditioned: Preconditioned,
    scoring: ScoringConfig,
    cluster: ClusterConfig,
    query_ids: list[str],
    matrix_path: Path,
) -> Tally:
    """Stream all shards through the cluster and merge what they give, in the order of the shards."""
    numbers = np.empty(len(players.rows), np.int64)
    numbers[players.rows] = np.arange(len(players.rows))
    n_windows = corpus.column("n_windows").to_numpy()
    scored = n_windows > 0
    places = corpus_places(corpus.contents[scored], numbers[scored])
    works: list[ShardWork] = []
    for segment in gradients.segments():
        usable = np.where(segment.content_done(), segment.contents, b"")
        works += shard_works(str(segment.path), usable, segment.first_rows, segment.rows_per_shard, places)
    ids = corpus.column("document_id").to_pylist()
    writer = ScoreWriter(matrix_path, query_ids, int(scored.sum())) if scoring.save_matrix else None

    def keep(block: np.ndarray, documents: np.ndarray) -> None:
        if writer is not None:
            writer.add(block, [ids[players.rows[number]] for number in documents])

    combination = Combination(players.sources, len(players.names), len(query_ids), scoring.top_k, keep)
    with (
        _client(cluster, len(works)) as client,
        progress("scores", len(works), "shard") as bar,
    ):
        for work, result in _shard_results(client, works, preconditioned, players, scoring, cluster.threads or 1):
            combination.add(work, result.tally, result.partial, result.block, result.documents)
            bar.advance()
    n_scored = int(combination.tally.counts.sum())
    if n_scored != int(scored.sum()):
        raise StoreIncompleteError(
            f"the store holds gradients of {n_scored} of {int(scored.sum())} documents: run index-corpus first"
        )
    if writer is not None:
        writer.close()
    return combination.tally


def _source_sums(tally: Tally, players: _Players, query_ids: list[str]) -> list[dict[str, Any]]:
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


def _passages(
    tally: Tally,
    players: _Players,
    corpus: CorpusStore,
    gradients: GradientStore,
    preconditioned: Preconditioned,
    whitening: Whitenings,
    query_ids: list[str],
) -> list[dict[str, Any]]:
    """The best documents of each query (rank 1, 2, …) and the worst (rank -1, -2, …), with their telling window."""
    numbers = np.unique(np.concatenate([tally.top.documents, tally.bottom.documents], axis=None))
    numbers = numbers[numbers >= 0]
    rows = players.rows[numbers]
    documents = dict(zip(numbers.tolist(), corpus.documents(rows), strict=True))
    by_number = dict(zip(numbers.tolist(), gradients.rows_of(corpus.contents[rows]), strict=True))
    passages = []
    for sign, kept in ((1, tally.top), (-1, tally.bottom)):
        for query, query_id in enumerate(query_ids):
            one_query = Preconditioned(preconditioned.queries[query : query + 1], preconditioned.whitening)
            relative = Preconditioned(one_query.queries, whitening)
            for place in np.flatnonzero(kept.documents[query] >= 0):
                number = int(kept.documents[query, place])
                window_rows = by_number[number]
                by_window = window_scores(window_rows, one_query)[0]
                telling = int(np.argmax(sign * by_window))
                window = int(corpus.first_windows[players.rows[number]]) + telling
                start = int(corpus.windows["character_start"][window])
                end = int(corpus.windows["character_end"][window])
                passages.append(
                    {
                        "query_id": query_id,
                        "rank": sign * (int(place) + 1),
                        "document_id": documents[number]["document_id"],
                        "source": documents[number]["source"],
                        "score": float(kept.scores[query, place]),
                        "relative_score": float(window_scores(window_rows, relative)[0].sum()),
                        "window_start": start,
                        "text": documents[number]["text"][start:end],
                    }
                )
    return passages
