"""Prefect task that scores every document for every query: one task that holds a Dask client."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task

from storage.corpus import CorpusStore
from storage.errors import InputError, StoreIncompleteError
from storage.gradients import GradientStore
from storage.layers import LayerStore
from storage.locations import StoreFolders
from storage.ref import StoreRef, fingerprint
from storage.schema import ALL_QUERIES
from storage.scores import ScoreStore, ScoreWriter
from tasks.cluster import MOST_LOSSES, dask_client, named_losses
from tasks.coalitions.groupings import SOURCE
from tasks.coalitions.players import document_groups
from tasks.configuration import ClusterConfig
from tasks.curvature.config import DampingConfig
from tasks.curvature.precondition import Preconditioner, damped_inverse
from tasks.progress import progress, run_logger
from tasks.retries import RETRIES, RETRY_DELAYS, may_help
from tasks.scoring.blocks import Preconditioned, Whitenings, self_influence, window_scores
from tasks.scoring.combination import Combination
from tasks.scoring.config import ScoringConfig
from tasks.scoring.plan import ShardWork, corpus_places, shard_works
from tasks.scoring.players import Players, chosen_sources, players
from tasks.scoring.queries import LayerColumns, layer_columns, preconditioned, whitenings
from tasks.scoring.shards import ShardScores, score_shard
from tasks.scoring.tally import Tally

__all__ = ["damped_inverses", "score_corpus"]

ALGORITHM = 1
SHARDS_AHEAD = 4


@task(
    name="score-corpus",
    task_run_name="score every document for every query",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=may_help,
)
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
    grouping: str = SOURCE,
) -> StoreRef:
    """One pass over the gradient store for all queries: top k, bottom k and sums by source, and the matrix on request.

    With another `grouping` ("publisher>section") the sums are those of its groups, by the same column `source`.

    Raises:
        StoreDamagedError, StoreIncompleteError: a shard cannot be read.
        InputError: the curvature of a layer is zero under relative damping; the corpus keeps no such field to group by.
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
        **({} if grouping == SOURCE else {"grouping": grouping}),
    }
    root, name = StoreFolders(store).scores, fingerprint(parts)
    ref = StoreRef(kind="scores", location=str(root / name), fingerprint=name)
    if ScoreStore.exists(root, name):
        run_logger().info("scores %s are there already", name)
        return ref
    documents, query_store = CorpusStore.open(corpus), CorpusStore.open(queries)
    gradient_store = GradientStore.open(gradients)
    scored = _players(documents, scoring, grouping)
    columns = _layer_columns(gradient_store, scoring)
    inverses = damped_inverses(curvature, damping_config)
    query_rows = np.concatenate(GradientStore.open(query_gradients).rows_of(query_store.contents))
    queries_ready = preconditioned(query_rows, columns, inverses, scoring.kind)
    query_ids = [*query_store.column("document_id").to_pylist(), ALL_QUERIES]
    with ScoreStore.writing(root, name) as target:
        tally = _tally(
            gradient_store, documents, scored, queries_ready, scoring, cluster, query_ids, target.matrix_path
        )
        by_number = _rows_of_kept(tally, scored, documents, gradient_store)
        relative = whitenings(columns, inverses)
        passages = _passages(tally, scored, documents, by_number, queries_ready, relative, query_ids)
        by_layer = None
        if scoring.by_layer:
            by_layer = _layer_scores(tally, passages, by_number, queries_ready, columns)
        target.write(passages, _source_sums(tally, scored, query_ids), parts, by_layer)
    return ref


def _players(corpus: CorpusStore, scoring: ScoringConfig, grouping: str) -> Players:
    sources = corpus.column("source").to_pylist()
    try:
        kept = chosen_sources(sorted(set(sources)), scoring.sources, scoring.without_sources)
    except ValueError as error:
        raise InputError(f"--scoring.sources: {error}") from None
    chosen = np.fromiter((source in kept for source in sources), bool, len(sources))
    ids, n_tokens = corpus.column("document_id").to_pylist(), corpus.column("n_tokens").to_numpy()
    return players(ids, document_groups(corpus, grouping), n_tokens, chosen)


def damped_inverses(curvature: StoreRef | None, config: DampingConfig) -> dict[str, Preconditioner]:
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


def _layer_columns(gradients: GradientStore, scoring: ScoringConfig) -> LayerColumns:
    try:
        return layer_columns(gradients.layers, scoring.layers)
    except ValueError as error:
        raise InputError(f"--scoring.layers: {error}") from None


def _shard_results(
    client: Any,
    works: Sequence[ShardWork],
    preconditioned: Preconditioned,
    players: Players,
    scoring: ScoringConfig,
    combination: Combination,
) -> Iterator[tuple[ShardWork, ShardScores]]:
    """Results in the order of the shards, a few shards ahead of the reader, so that memory stays bounded.

    A worker that dies takes its copy of the queries with it; where it held the last one, they are handed out again.
    """
    from distributed import CancelledError

    n_ahead = SHARDS_AHEAD * max(1, len(client.scheduler_info()["workers"]))
    waiting: deque[tuple[ShardWork, Any]] = deque()
    todo = deque(works)
    shared: list[Any] = []
    n_lost = 0
    with named_losses("scoring", client):
        while todo or waiting:
            if not shared:
                shared = [
                    client.scatter(item, broadcast=True, hash=False) for item in (preconditioned, players.sources)
                ]
            while todo and len(waiting) < n_ahead:
                work = todo.popleft()
                future = client.submit(
                    score_shard,
                    work,
                    *shared,
                    len(players.names),
                    scoring.top_k,
                    keep_block=scoring.save_matrix,
                    floors=combination.reached,
                    pure=False,
                )
                waiting.append((work, future))
            work, future = waiting[0]
            try:
                result = future.result()
            except CancelledError:
                n_lost += 1
                if n_lost > MOST_LOSSES or client.status != "running":
                    raise
                run_logger().warning("a Dask worker died with what it held: handing its shards out again")
                todo.extendleft(work for work, _ in reversed(waiting))
                waiting.clear()
                shared = []
                continue
            waiting.popleft()
            yield work, result


def _tally(
    gradients: GradientStore,
    corpus: CorpusStore,
    players: Players,
    preconditioned: Preconditioned,
    scoring: ScoringConfig,
    cluster: ClusterConfig,
    query_ids: list[str],
    matrix_path: Path,
) -> Tally:
    """Stream all shards through the cluster and merge what they give, in the order of the shards."""
    scored = (corpus.column("n_windows").to_numpy() > 0) & players.chosen
    places = corpus_places(corpus.contents[scored], players.numbers[scored])
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
        dask_client(cluster, len(works)) as client,
        progress("scores", len(works), "shard") as bar,
    ):
        for work, result in _shard_results(client, works, preconditioned, players, scoring, combination):
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


def _source_sums(tally: Tally, players: Players, query_ids: list[str]) -> list[dict[str, Any]]:
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


def _rows_of_kept(
    tally: Tally, players: Players, corpus: CorpusStore, gradients: GradientStore
) -> dict[int, np.ndarray]:
    """Document number → (n_windows, n_columns) gradients of every document among the best or the worst."""
    numbers = np.unique(np.concatenate([tally.top.documents, tally.bottom.documents], axis=None))
    numbers = numbers[numbers >= 0]
    found = gradients.rows_of(corpus.contents[players.rows[numbers]])
    return dict(zip(numbers.tolist(), found, strict=True))


def _passages(
    tally: Tally,
    players: Players,
    corpus: CorpusStore,
    by_number: dict[int, np.ndarray],
    preconditioned: Preconditioned,
    whitening: Whitenings,
    query_ids: list[str],
) -> list[dict[str, Any]]:
    """The best documents of each query (rank 1, 2, …) and the worst (rank -1, -2, …), with their telling window."""
    rows = players.rows[list(by_number)]
    documents = dict(zip(by_number, corpus.documents(rows), strict=True))
    passages = []
    for query, sign, place, number, score in _kept(tally):
        one_query = Preconditioned(preconditioned.queries[query : query + 1], preconditioned.whitening)
        relative = Preconditioned(one_query.queries, whitening)
        by_window = window_scores(by_number[number], one_query)[0]
        window = int(corpus.first_windows[players.rows[number]]) + int(np.argmax(sign * by_window))
        start = int(corpus.windows["character_start"][window])
        end = int(corpus.windows["character_end"][window])
        passages.append(
            {
                "query_id": query_ids[query],
                "rank": sign * (place + 1),
                "document_id": documents[number]["document_id"],
                "source": documents[number]["source"],
                "score": score,
                "relative_score": float(window_scores(by_number[number], relative)[0].sum()),
                "window_start": start,
                "text": documents[number]["text"][start:end],
            }
        )
    return passages


def _kept(tally: Tally) -> Iterator[tuple[int, int, int, int, float]]:
    """(query, 1 or -1, place, document number, score) of the best, then of the worst documents."""
    for sign, kept in ((1, tally.top), (-1, tally.bottom)):
        for query in range(len(kept.documents)):
            for place in np.flatnonzero(kept.documents[query] >= 0):
                number, score = int(kept.documents[query, place]), float(kept.scores[query, place])
                yield query, sign, int(place), number, score


def _layer_scores(
    tally: Tally,
    passages: list[dict[str, Any]],
    by_number: dict[int, np.ndarray],
    preconditioned: Preconditioned,
    columns: LayerColumns,
) -> list[dict[str, Any]]:
    """What each layer gave to each kept document's score; they add up to it."""
    table = []
    for (query, _, _, number, _), passage in zip(_kept(tally), passages, strict=True):
        rows = by_number[number].astype(np.float32)
        norms = np.ones(len(rows))
        if preconditioned.whitening is not None:
            norms = np.sqrt(self_influence(rows, preconditioned.whitening))
        weights = np.divide(1.0, norms, out=np.zeros(len(rows)), where=norms > 0)
        for name, where in columns:
            score = float(weights @ (rows[:, where] @ preconditioned.queries[query, where]).astype(np.float64))
            common = {key: passage[key] for key in ("query_id", "rank", "document_id")}
            table.append({**common, "layer": name, "score": score})
    return table
