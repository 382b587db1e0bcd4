"""The step that turns the sums of a scoring pass into values of sources."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dataworth.storage.coalitions import CoalitionStore, UtilityStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.locations import StoreFolders
from dataworth.storage.ref import StoreRef, fingerprint
from dataworth.storage.schema import ALL_QUERIES, DOCUMENT_VALUES, OVERLAP, VALUES
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.cluster import cluster_address, dask_client
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.document_values import path_document_values
from dataworth.tasks.coalitions.games.game import RetrainedGame
from dataworth.tasks.coalitions.games.model_game import MeasuredLosses, ModelSums, in_order, model_sums, query_expansion
from dataworth.tasks.coalitions.games.spread import PARTS, SpreadGame, SpreadRows
from dataworth.tasks.coalitions.games.trust import Check, RetrainedCheck
from dataworth.tasks.coalitions.parts import GameParts
from dataworth.tasks.coalitions.payout.overlap import overlap_rows
from dataworth.tasks.coalitions.play import Play
from dataworth.tasks.coalitions.player_values import asked, outcome_of, with_queries, worth_of_all
from dataworth.tasks.coalitions.stored_vectors import stored_vectors
from dataworth.tasks.coalitions.uncertainty.averages import Repeated, averaged, mean_document_values, mean_overlap
from dataworth.tasks.coalitions.uncertainty.document_errors import with_document_errors
from dataworth.tasks.coalitions.values import Players, Values, value_rows
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.corpus.groups import SOURCE
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.model.loading import load
from dataworth.tasks.progress import progress, run_logger
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.retraining import Retrained

__all__ = ["GameParts", "average_values", "game_fingerprint", "play_of", "value_sources"]

ALGORITHM = 8
GAMES = 3
AVERAGES = 2
LOCAL = ClusterConfig()
# What to pass where some are valued by the game that was asked for, and some fell back to the additive one.
REMEDIES = {
    "projection": "--sources.projection_seeds: {}; raise --projection.rank",
    "checkpoint": "--model: {}; pass --game additive",
}


def value_sources(
    store: str,
    scores: StoreRef,
    sources: SourcesConfig,
    game: GameParts | None = None,
    cluster: ClusterConfig = LOCAL,
) -> StoreRef:
    """Value, interval and share of every source for every query, and for all queries together.

    The coarser levels of a nested grouping are further rows.

    Args:
        store: root of the stores.
        scores: of the scoring pass.
        sources: the game, the semivalue, intervals.
        game: what other games than the additive one need.
        cluster: where it has an address or several workers, they hold the layers of an expanded newton game, measure
            the worths of an evaluated one, and train in retrain.
    """
    parts = {
        "values": ALGORITHM,
        "scores": scores.fingerprint,
        **sources.model_dump(exclude={"by", "payout", "projection_seeds"}),
    }
    if game is not None:
        parts["game parts"] = game.model_dump(mode="json")
    root, name = StoreFolders(store).values, fingerprint(parts)
    if CoalitionStore.exists(root, name):
        run_logger().info("values %s are there already", name)
        return StoreRef(kind="coalitions", location=str(root / name), fingerprint=name)
    opened = ScoreStore.open(scores)
    table = opened.source_sums.to_pandas()
    players = Players(
        query_ids=table["query_id"].drop_duplicates().to_list(),
        names=table["source"].drop_duplicates().to_list(),
        grouping=opened.attributes.get("grouping", SOURCE),
        table=table,
    )
    additive = Values.of_sums(players, sources)
    found = additive if game is None else _played(store, scores, sources, game, players, additive, cluster)
    attributes = {**parts, "game": found.game, "notes": found.notes}
    rows = value_rows(players, found, sources)
    return CoalitionStore.write(root, name, rows, attributes, found.overlap, found.documents)


def average_values(
    store: str,
    tables: list[StoreRef],
    confidence: float,
    repeated: Repeated = "projection",
    scores: StoreRef | None = None,
) -> StoreRef:
    """The mean of values over projections with different seeds, or over checkpoints, with the error of those.

    Args:
        store: root of the stores.
        tables: values of each, the first that of the configuration's own seed, or of its first checkpoint.
        confidence: of the intervals.
        repeated: what differs between them.
        scores: whose sums by source these are the means of, where there are such; else those of the first.

    Raises:
        InputError: not all of them are of one game.
    """
    stores = [CoalitionStore.open(each) for each in tables]
    names = [each.fingerprint for each in tables]
    parts: dict[str, Any] = {"averaged": AVERAGES, f"{repeated}s": names, "confidence": confidence}
    if scores is not None:
        parts["scores"] = scores.fingerprint
    root, name = StoreFolders(store).values, fingerprint(parts)
    if CoalitionStore.exists(root, name):
        run_logger().info("values %s are there already", name)
        return StoreRef(kind="coalitions", location=str(root / name), fingerprint=name)
    try:
        table = averaged([each.values.to_pandas() for each in stores], confidence, repeated)
    except ValueError as error:
        raise InputError(REMEDIES[repeated].format(error)) from None
    rows = pa.Table.from_pandas(table, VALUES, preserve_index=False).to_pylist()
    overlap = _mean_rows([each.overlap for each in stores], mean_overlap, OVERLAP)
    documents = _mean_rows([each.documents for each in stores], mean_document_values, DOCUMENT_VALUES)
    attributes = {**stores[0].attributes, **parts, "notes": _mean_notes(stores, repeated)}
    return CoalitionStore.write(root, name, rows, attributes, overlap, documents)


def _mean_rows(
    tables: Sequence[pa.Table | None], mean: Callable[[list[pd.DataFrame]], pd.DataFrame], schema: pa.Schema
) -> list[dict[str, Any]] | None:
    """Rows of the mean of optional tables; None where the game has none."""
    known = [table.to_pandas() for table in tables if table is not None]
    if not known:
        return None
    rows: list[dict[str, Any]] = pa.Table.from_pandas(mean(known), schema, preserve_index=False).to_pylist()
    return rows


def _mean_notes(stores: Sequence[CoalitionStore], repeated: Repeated) -> dict[str, Any]:
    """What is to be known of the first, but that a game is reliable only where it is so for all."""
    found = [each.attributes["notes"] for each in stores]
    counted = f"{len(stores)} seeds" if repeated == "projection" else f"{len(stores)} of them"
    notes = found[0] | {
        f"{repeated}s": len(stores),
        "errors": f"{found[0]['errors']}; of the {repeated}, by {counted}",
    }
    if "reliable" in found[0]:
        notes["reliable"] = all(each.get("reliable", True) for each in found)
    return dict(notes)


def play_of(game: GameParts, names: Sequence[str], pull: float | None) -> Play:
    """The game of some sources, read from the stores.

    Args:
        game: what it is made of.
        names: of the players, in their order.
        pull: lambda where it is given.

    Raises:
        InputError: the model cannot be loaded, or a source has no example.
    """
    loaded, queries = load(game.model), CorpusStore.open(game.queries)
    sums = model_sums(in_order(game.sums, names), game.bases, game.model, pull, game.damping)
    losses = query_losses(loaded, queries)
    return Play(
        sums=sums,
        expansion=query_expansion(sums, queries, game.query_gradients, game.factors, losses),
        losses_at=MeasuredLosses(game.model, game.bases, game.queries),
        base_losses=None if game.model.base is None else query_losses(load(game.model, 1.0), queries),
    )


def game_fingerprint(game: GameParts, sources: SourcesConfig, scores: str) -> str:
    """Of the UtilityStore of a game, in StoreFolders.games; `scores` is the fingerprint of the scoring pass."""
    parts = {"game": GAMES, "sources": sources.model_dump(include={"game", "utility", "pull"})}
    return fingerprint(parts | game.model_dump(mode="json") | {"scores": scores})


def _played(
    store: str,
    scores: StoreRef,
    sources: SourcesConfig,
    game: GameParts,
    players: Players,
    additive: Values,
    cluster: ClusterConfig,
) -> Values:
    """The values of a game with interactions; the additive ones where it is not to be trusted for this model."""
    kept = UtilityStore.create(
        StoreFolders(store).games,
        game_fingerprint(game, sources, scores.fingerprint),
        {"scores": scores.fingerprint, "players": players.names},
    )
    if game.training is not None:
        return _retrained(game, game.training, sources, players, additive, cluster, kept)
    played = play_of(game, players.names, sources.pull)
    checked = played.checked()
    if _refused(checked, sources):
        return _fallen_back(additive, checked, sources)
    if played.linear(sources):
        played = replace(played, vectors=stored_vectors(store, game, players.names, played.sums, sources))
    with _spread(played, sources, cluster) as playing:
        outcome = with_document_errors(playing, sources, playing.values(sources, kept))
    overlap = overlap_rows(players.names, played.interactions(), ALL_QUERIES)
    values = Values.of_outcome(outcome, sources.game, checked.facts(), overlap)
    if not sources.document_values:
        return values
    return replace(values, documents=_documents(played, game, players))


def _documents(play: Play, game: GameParts, players: Players) -> list[dict[str, Any]]:
    """What every document is worth along the path."""
    if not isinstance(play.sums, ModelSums):
        raise TypeError("values of documents need the sums of a model")
    return path_document_values(play, play.sums, game, players.grouping, players.names)


def _retrained(
    game: GameParts,
    training: TrainingConfig,
    sources: SourcesConfig,
    players: Players,
    additive: Values,
    cluster: ClusterConfig,
    kept: UtilityStore,
) -> Values:
    """The values of the game retrain; the additive ones where training leads elsewhere than to the model."""
    retrained = Retrained(game.model, game.corpus, game.queries, players.grouping, tuple(players.names), training)
    queries, n_players = CorpusStore.open(game.queries), len(players.names)
    base = query_losses(load(game.model, 1.0), queries)
    everybody = query_losses(load(game.model), queries)
    most = min(2**n_players, sources.budget)
    with _client(cluster, most) as client, progress("trainings", most, "training") as bar:
        losses_after = retrained if client is None else SpreadRows(retrained, client)

        def counted(masks: np.ndarray) -> np.ndarray:
            losses = losses_after(masks)
            bar.advance(len(masks))
            return losses

        played = RetrainedGame(counted, len(base), n_players)
        checked = RetrainedCheck(
            float(everybody.sum()), -float(worth_of_all(played, len(base), kept).sum()), float(base.sum())
        )
        if _refused(checked, sources):
            return _fallen_back(additive, checked, sources)
        found = asked(played, len(base), sources, kept, at_once=1 if client is None else _n_threads(client))
    outcome = with_queries(outcome_of(found, "retrained"), sources.confidence)
    return Values.of_outcome(outcome, sources.game, checked.facts())


def _refused(checked: Check | RetrainedCheck, sources: SourcesConfig) -> bool:
    """Log what was measured; is the game not to be played?"""
    for line in checked.sentences():
        run_logger().info(line)
    return not checked.reliable and sources.fallback


def _fallen_back(additive: Values, checked: Check | RetrainedCheck, sources: SourcesConfig) -> Values:
    """The additive game, said aloud."""
    run_logger().warning("%s: valued by the additive game instead (--sources.fallback)", checked.reason)
    notes = additive.notes | checked.facts() | {"fallback": f"{sources.game}: {checked.reason}"}
    return replace(additive, notes=notes)


@contextmanager
def _client(cluster: ClusterConfig, n_parts: int) -> Iterator[Any]:
    """A Dask client where a cluster is asked for, else None: the game is played in this process."""
    if cluster_address(cluster) is None and (cluster.workers or 1) < 2:
        yield None
        return
    with dask_client(cluster, n_parts) as client:
        yield client


def _n_threads(client: Any) -> int:
    """Trainings that a cluster does at a time."""
    return max(1, sum(client.nthreads().values()))


@contextmanager
def _spread(play: Play, sources: SourcesConfig, cluster: ClusterConfig) -> Iterator[Play]:
    """The same play, its newton game on a cluster where one is asked for."""
    if sources.game != "newton":
        yield play
        return
    with _client(cluster, PARTS) as client:
        if client is None:
            yield play
        elif play.evaluates(sources):
            yield replace(play, losses_at=SpreadRows(play.losses_at, client))
        else:
            yield replace(play, spread=lambda game: SpreadGame(game, client))
