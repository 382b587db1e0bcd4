"""Steps that score every document for every query: one that streams the rows, and one that averages."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError, StoreIncompleteError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.layers import LayerStore
from dataworth.storage.place import Location
from dataworth.storage.ref import StoreRef
from dataworth.storage.schema import ALL_QUERIES
from dataworth.storage.scores import ScoreStore, ScoreWriter
from dataworth.storage.spelling import setting
from dataworth.tasks.cluster import dask_client, wants_cluster, windowed
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.corpus.groups import SOURCE
from dataworth.tasks.curvature.config import DampingConfig
from dataworth.tasks.keeping import kept
from dataworth.tasks.progress import progress
from dataworth.tasks.scoring.averages import mean_blocks
from dataworth.tasks.scoring.combination import Combination
from dataworth.tasks.scoring.config import ScoringConfig
from dataworth.tasks.scoring.passages import passages, source_sums
from dataworth.tasks.scoring.plan import ShardWork, corpus_places, shard_works
from dataworth.tasks.scoring.players import Players
from dataworth.tasks.scoring.ready import Pass, ReadyPass, counted_layers, ready_players
from dataworth.tasks.scoring.shards import ShardScores, score_shard
from dataworth.tasks.scoring.tally import Tally
from dataworth.tasks.training.steps import DERIVATIVES

__all__ = ["average_scores", "replayed_scores", "score_corpus"]

ALGORITHM = 2
AVERAGES = 1
REPLAYED = 1
SHARDS_AHEAD = 4
# Multiply-adds that take one processor about a second: a cluster takes three to begin and to end.
LITTLE = 2**33
# What it takes to read, check and convert an entry of a row, and to divide it by its self-influence, in such.
READ, RELATIVE = 32, 256


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
    trained: StoreRef | None = None,
) -> StoreRef:
    """One pass over the gradient store for all queries: top k, bottom k and sums by source, and the matrix on request.

    With another `grouping` ("publisher>section") the sums are those of its groups, by the same column `source`.

    Args:
        store: root of the stores.
        corpus, gradients: the documents, and theirs.
        queries, query_gradients: the queries, and theirs.
        curvature, damping_config: of the training loss; None for `none`.
        scoring: what is kept.
        cluster: where it is computed.
        grouping: of the documents.
        trained: the corpus of the training, where these are documents that the model was not trained on.

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
        **scoring.of_scores,
        **({} if grouping == SOURCE else {"grouping": grouping}),
        **({} if trained is None else {"trained": trained.fingerprint}),
    }

    def build(root: Location, name: str) -> None:
        documents, asked = CorpusStore.open(corpus), CorpusStore.open(queries)
        scored = ready_players(documents, scoring, grouping)
        ready = ReadyPass.of(
            *(documents, scored, gradients, asked, query_gradients, curvature, damping_config, scoring, trained)
        )
        query_ids = [*asked.column("document_id").to_pylist(), ALL_QUERIES]
        with ScoreStore.writing(root, name) as target:
            tally = _tally(ready, scoring, cluster, query_ids, target.matrix_path)
            table, by_layer = passages(tally, documents, scored, [ready], query_ids, by_layer=scoring.by_layer)
            target.write(table, source_sums(tally, scored, query_ids), parts, by_layer)

    return kept(store, "scores", parts, "scores", build)


def average_scores(
    store: str,
    corpus: StoreRef,
    queries: StoreRef,
    passes: list[Pass],
    damping_config: DampingConfig,
    scoring: ScoringConfig,
    grouping: str = SOURCE,
    trained: StoreRef | None = None,
) -> StoreRef:
    """The mean of the scores of several checkpoints, kept as those of one pass are: top k, bottom k, sums, matrix.

    Matrices are read a chunk at a time. A passage is the first checkpoint's telling window.

    Args:
        store: root of the stores.
        corpus, queries: of all passes.
        passes: one a checkpoint, each with the matrix of all its scores, and its weight.
        damping_config: of all passes.
        scoring: of all passes, and what is kept of the mean.
        grouping: of the documents, whatever that of the passes was.
        trained: as for `score_corpus`.

    Raises:
        StoreIncompleteError: a pass kept no matrix.
        InputError: `by_layer`, and the checkpoints' layers differ.
        ValueError: the passes are not of the same documents.
    """
    parts = {
        "mean scores": AVERAGES,
        "corpus": corpus.fingerprint,
        "queries": queries.fingerprint,
        "passes": [each.scores.fingerprint for each in passes],
        **({"weights": [each.weight for each in passes]} if len({each.weight for each in passes}) > 1 else {}),
        **scoring.of_scores,
        **({} if grouping == SOURCE else {"grouping": grouping}),
        **({} if trained is None else {"trained": trained.fingerprint}),
    }

    def build(root: Location, name: str) -> None:
        if scoring.by_layer:
            _refuse_other_layers(passes, scoring)
        documents, asked = CorpusStore.open(corpus), CorpusStore.open(queries)
        scored = ready_players(documents, scoring, grouping)

        def ready(each: Pass) -> ReadyPass:
            stores = (each.gradients, asked, each.query_gradients, each.curvature)
            return ReadyPass.of(documents, scored, *stores, damping_config, scoring, trained)

        query_ids = [*asked.column("document_id").to_pylist(), ALL_QUERIES]
        with ScoreStore.writing(root, name) as target:
            tally = _mean_tally(documents, scored, passes, scoring, query_ids, target.matrix_path)
            opened = map(ready, passes)
            table, by_layer = passages(
                *(tally, documents, scored, opened, query_ids),
                by_layer=scoring.by_layer,
                weights=[each.weight for each in passes],
            )
            target.write(table, source_sums(tally, scored, query_ids), parts, by_layer)

    return kept(store, "scores", parts, "mean scores", build)


def replayed_scores(
    store: str,
    corpus: StoreRef,
    gradients: StoreRef,
    queries: StoreRef,
    query_gradients: StoreRef,
    curvature: StoreRef | None,
    damping_config: DampingConfig,
    scoring: ScoringConfig,
    replayed: StoreRef,
    grouping: str = SOURCE,
) -> StoreRef:
    """Scores by what the training itself tells, kept as those of a pass are: top k, bottom k, sums, matrix.

    A document's score is the sum over its windows of minus the derivative of a query's loss by the window's weight in
    the training: nats of the loss that it took off. A passage is the window that tells most by its gradient.

    Args:
        store: root of the stores.
        corpus, queries: that the training was gone back through for.
        gradients, query_gradients, curvature, damping_config: of the trained model, for relative scores and passages.
        scoring: what is kept.
        replayed: the derivatives; see dataworth.tasks.training.steps.
        grouping: of the documents.
    """
    parts = {
        "replayed scores": REPLAYED,
        "corpus": corpus.fingerprint,
        "queries": queries.fingerprint,
        "replay": replayed.fingerprint,
        "gradients": gradients.fingerprint,
        "curvature": curvature.fingerprint if curvature else None,
        "damping": damping_config.model_dump() if curvature else None,
        **scoring.of_scores,
        **({} if grouping == SOURCE else {"grouping": grouping}),
    }

    def build(root: Location, name: str) -> None:
        documents, asked = CorpusStore.open(corpus), CorpusStore.open(queries)
        scored = ready_players(documents, scoring, grouping)
        ready = ReadyPass.of(documents, scored, gradients, asked, query_gradients, curvature, damping_config, scoring)
        query_ids = [*asked.column("document_id").to_pylist(), ALL_QUERIES]
        of_windows = -LayerStore.open(replayed).matrix(DERIVATIVES, DERIVATIVES)
        of_documents = np.zeros((documents.n_documents, len(of_windows)))
        np.add.at(of_documents, documents.windows["document"], of_windows.T)
        block = np.concatenate([of_documents.T, of_documents.sum(axis=1)[None]])
        numbers = np.flatnonzero(_scored(documents, scored))
        with ScoreStore.writing(root, name) as target:
            with _combination(documents, scored, scoring, query_ids, target.matrix_path) as combination:
                combination.add_whole(block[:, scored.rows[numbers]], numbers)
            table, by_layer = passages(combination.tally, documents, scored, [ready], query_ids, by_layer=False)
            target.write(table, source_sums(combination.tally, scored, query_ids), parts, by_layer)

    return kept(store, "scores", parts, "scores by the training", build)


def _refuse_other_layers(passes: Sequence[Pass], scoring: ScoringConfig) -> None:
    stores = [GradientStore.open(each.gradients) for each in passes]
    names = {tuple(layer.name for layer in counted_layers(store, scoring)) for store in stores}
    if len(names) > 1:
        raise InputError(
            f"{setting('scoring.by_layer')}: the checkpoints have other layers; leave {setting('scoring.by_layer')} out"
        )


def _shard_results(
    cluster: ClusterConfig,
    ready: ReadyPass,
    works: Sequence[ShardWork],
    scoring: ScoringConfig,
    combination: Combination,
) -> Generator[tuple[ShardWork, ShardScores]]:
    """Results in the order of the shards: of this process where the work is little, else of a cluster."""
    shared = (ready.queries, ready.players.sources)

    def asked(work: ShardWork, held: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        more = {"keep_block": scoring.save_matrix, "floors": combination.reached}
        return (work, *held, len(ready.players.names), scoring.top_k), more

    if not wants_cluster(cluster) and _multiply_adds(ready) <= LITTLE:
        for work in works:
            arguments, more = asked(work, shared)
            yield work, score_shard(*arguments, **more)
        return

    def submit(work: ShardWork, held: Sequence[Any]) -> Any:
        arguments, more = asked(work, held)
        return client.submit(score_shard, *arguments, **more, pure=False)

    with dask_client(cluster, len(works)) as client:
        n_ahead = SHARDS_AHEAD * max(1, len(client.scheduler_info()["workers"]))
        yield from windowed(client, "scoring", works, submit, n_ahead, shared=shared)


def _multiply_adds(ready: ReadyPass) -> int:
    """What the pass comes to."""
    n_rows = sum(segment.n_rows for segment in ready.gradients.segments())
    n_queries, n_columns = ready.queries.queries.shape
    return n_rows * n_columns * (n_queries + READ + (RELATIVE if ready.queries.relative else 0))


def _tally(
    ready: ReadyPass, scoring: ScoringConfig, cluster: ClusterConfig, query_ids: list[str], matrix_path: Path
) -> Tally:
    """Stream all shards through the cluster and merge what they give, in the order of the shards."""
    corpus, players = ready.corpus, ready.players
    scored = _scored(corpus, players)
    places = corpus_places(corpus.contents[scored], players.numbers[scored])
    works: list[ShardWork] = []
    for segment in ready.gradients.segments():
        usable = np.where(segment.content_done(), segment.contents, b"")
        works += shard_works(str(segment.path), usable, segment.first_rows, segment.rows_per_shard, places)
    with _combination(corpus, players, scoring, query_ids, matrix_path) as combination:
        with (
            closing(_shard_results(cluster, ready, works, scoring, combination)) as results,
            progress("scores", len(works), "shard") as bar,
        ):
            for work, result in results:
                combination.add(work, result.tally, result.partial, result.block, result.documents)
                bar.advance()
        n_scored = int(combination.tally.counts.sum())
        if n_scored != int(scored.sum()):
            raise StoreIncompleteError(
                f"the store holds gradients of {n_scored} of {int(scored.sum())} documents: run index-corpus first"
            )
    return combination.tally


def _mean_tally(
    corpus: CorpusStore,
    players: Players,
    passes: Sequence[Pass],
    scoring: ScoringConfig,
    query_ids: list[str],
    matrix_path: Path,
) -> Tally:
    """Stream the passes' matrices and merge the blocks of their mean, in the order of the first."""
    matrices = [ScoreStore.open(each.scores).matrix for each in passes]
    ids = corpus.column("document_id").to_pylist()
    numbers = {ids[row]: number for number, row in enumerate(players.rows)}
    with (
        _combination(corpus, players, scoring, query_ids, matrix_path) as combination,
        progress("mean scores", int(_scored(corpus, players).sum()), "document") as bar,
    ):
        for block, names in mean_blocks(matrices, [each.weight for each in passes]):
            combination.add_whole(block, np.fromiter((numbers[name] for name in names), np.int64, len(names)))
            bar.advance(len(names))
    return combination.tally


def _scored(corpus: CorpusStore, players: Players) -> np.ndarray:
    """(n_corpus,) bool: the document has a score."""
    scored: np.ndarray = (corpus.column("n_windows").to_numpy() > 0) & players.chosen
    return scored


@contextmanager
def _combination(
    corpus: CorpusStore, players: Players, scoring: ScoringConfig, query_ids: list[str], matrix_path: Path
) -> Iterator[Combination]:
    """What blocks of scores are added to; the matrix of all of them is whole when the block ends, if it is kept."""
    ids = corpus.column("document_id").to_pylist()
    writer = ScoreWriter(matrix_path, query_ids, int(_scored(corpus, players).sum())) if scoring.save_matrix else None

    def keep(block: np.ndarray, documents: np.ndarray) -> None:
        if writer is not None:
            writer.add(block, [ids[players.rows[number]] for number in documents])

    yield Combination(players.sources, len(players.names), len(query_ids), scoring.top_k, keep)
    if writer is not None:
        writer.close()
