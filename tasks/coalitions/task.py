"""Prefect task that turns the sums of a scoring pass into values of sources."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from prefect import task
from pydantic import BaseModel, ConfigDict

from storage.coalitions import CoalitionStore, UtilityStore
from storage.corpus import CorpusStore
from storage.locations import StoreFolders
from storage.ref import StoreRef, fingerprint
from storage.schema import ALL_QUERIES
from storage.scores import ScoreStore
from tasks.cluster import cluster_address, dask_client
from tasks.coalitions.additive import interval, shares, standard_errors
from tasks.coalitions.config import SourcesConfig
from tasks.coalitions.documents import in_quadrature, with_document_errors
from tasks.coalitions.groupings import SOURCE, grouping_fields
from tasks.coalitions.levels import Level, levels
from tasks.coalitions.overlap import overlap_rows
from tasks.coalitions.play import Play
from tasks.coalitions.spread import PARTS, SpreadGame
from tasks.coalitions.worth import evaluation, in_order, model_sums, query_expansion, query_losses
from tasks.configuration import ClusterConfig
from tasks.curvature.config import DampingConfig
from tasks.model.config import ModelConfig
from tasks.model.loading import load
from tasks.progress import run_logger
from tasks.retries import RETRIES, RETRY_DELAYS, may_help

__all__ = ["GameParts", "game_fingerprint", "play_of", "value_sources"]

ALGORITHM = 5
GAMES = 2
LOCAL = ClusterConfig()


class GameParts(BaseModel):
    """What a game over sources needs beside the scores.

    Args:
        model: the checkpoint, and its base.
        queries, query_gradients: of the queries.
        bases: of the projection.
        sums: source → its sums of gradient and curvature.
        factors: the queries' rows of curvature.
        damping: where no pull towards the base is known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: ModelConfig
    queries: StoreRef
    query_gradients: StoreRef
    bases: StoreRef
    sums: dict[str, StoreRef]
    factors: StoreRef
    damping: DampingConfig


@task(
    name="value-sources",
    task_run_name="value the sources ({sources.game})",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=may_help,
)
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
        cluster: whose workers hold the layers of an expanded newton game, where it has an address or several workers.
    """
    parts = {"values": ALGORITHM, "scores": scores.fingerprint, **sources.model_dump(exclude={"by", "payout"})}
    if game is not None:
        parts["game parts"] = game.model_dump(mode="json")
    root, name = StoreFolders(store).values, fingerprint(parts)
    if CoalitionStore.exists(root, name):
        run_logger().info("values %s are there already", name)
        return StoreRef(kind="coalitions", location=str(root / name), fingerprint=name)
    opened = ScoreStore.open(scores)
    table = opened.source_sums.to_pandas()
    players = _Players(
        query_ids=table["query_id"].drop_duplicates().to_list(),
        names=table["source"].drop_duplicates().to_list(),
        grouping=opened.manifest["attributes"].get("grouping", SOURCE),
        table=table,
    )
    additive = _Values.of_sums(players, sources)
    found = additive if game is None else _played(store, scores, sources, game, players, additive, cluster)
    attributes = {**parts, "game": found.game, "notes": found.notes}
    return CoalitionStore.write(root, name, _rows(players, found, sources), attributes, found.overlap)


@dataclass(frozen=True)
class _Players:
    """Sources and queries of a scoring pass."""

    query_ids: list[str]
    names: list[str]
    grouping: str
    table: Any

    def column(self, name: str) -> np.ndarray:
        """(n_queries, n_sources) of a column of the sums."""
        found: np.ndarray = self.table[name].to_numpy().reshape(len(self.query_ids), len(self.names))
        return found


@dataclass(frozen=True)
class _Values:
    """(n_queries, n_sources) values, by which game, what is to be known of them, and errors by their cause."""

    values: np.ndarray
    errors: np.ndarray
    low: np.ndarray
    high: np.ndarray
    game: str
    notes: dict[str, Any]
    overlap: list[dict[str, Any]] | None = None
    causes: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of_sums(cls, players: _Players, sources: SourcesConfig) -> "_Values":
        """The additive game."""
        sums, counts = players.column("sum"), players.column("n_documents")[0]
        errors = standard_errors(sums, players.column("sum_of_squares"), counts)
        low, high = interval(sums, errors, counts, sources.confidence)
        return cls(sums, errors, low, high, "additive", {"errors": "of documents"}, causes={"documents": errors})


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
        losses_at=evaluation(loaded, game.bases, queries),
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
    players: _Players,
    additive: _Values,
    cluster: ClusterConfig,
) -> _Values:
    """The values of a game with interactions; the additive ones where it is not to be trusted for this model."""
    played = play_of(game, players.names, sources.pull)
    checked = played.checked()
    for line in checked.sentences():
        run_logger().info(line)
    if not checked.reliable and sources.fallback:
        run_logger().warning("%s: valued by the additive game instead (--sources.fallback)", checked.reason)
        notes = additive.notes | checked.facts() | {"fallback": f"{sources.game}: {checked.reason}"}
        return replace(additive, notes=notes)
    kept = UtilityStore.create(
        StoreFolders(store).games,
        game_fingerprint(game, sources, scores.fingerprint),
        {"scores": scores.fingerprint, "players": players.names},
    )
    with _spread(played, sources, cluster) as playing:
        outcome = with_document_errors(playing, sources, playing.values(sources, kept))
    run_logger().info("%s", outcome.reason)
    notes = checked.facts() | outcome.facts
    overlap = overlap_rows(players.names, played.interactions(), ALL_QUERIES)
    ends = outcome.low, outcome.high
    return _Values(outcome.values, outcome.errors, *ends, sources.game, notes, overlap, outcome.causes)


@contextmanager
def _spread(play: Play, sources: SourcesConfig, cluster: ClusterConfig) -> Iterator[Play]:
    """The same play, its expanded game on a cluster where one is asked for."""
    if not play.asks_expanded(sources) or (cluster_address(cluster) is None and (cluster.workers or 1) < 2):
        yield play
        return
    with dask_client(cluster, PARTS) as client:
        yield replace(play, spread=lambda game: SpreadGame(game, client))


def _rows(players: _Players, found: _Values, sources: SourcesConfig) -> list[dict[str, Any]]:
    """Rows of VALUES, the players' own level first."""
    return [
        row
        for level in levels(players.names, len(grouping_fields(players.grouping)))
        for row in _level_rows(level, players, found, sources)
    ]


def _at_level(level: Level, players: _Players, found: _Values, sources: SourcesConfig) -> _Values:
    """Values of groups of players: errors of different sources are taken as independent."""
    values, counts = level.summed(found.values), level.summed(players.column("n_documents")[0])
    if found.game == "additive":
        sums, squares = level.summed(players.column("sum")), level.summed(players.column("sum_of_squares"))
        errors = standard_errors(sums, squares, counts)
        low, high = interval(values, errors, counts, sources.confidence)
        return replace(found, values=values, errors=errors, low=low, high=high, causes={"documents": errors})

    def together(parts: np.ndarray) -> np.ndarray:
        known = level.summed((~np.isnan(parts)).astype(np.int64)) > 0
        return np.where(known, np.sqrt(level.summed(np.nan_to_num(parts) ** 2)), np.nan)

    causes = {name: together(errors) for name, errors in found.causes.items()}
    low, high = values - together(found.values - found.low), values + together(found.high - found.values)
    errors = in_quadrature(list(causes.values()))
    return replace(found, values=values, errors=errors, low=low, high=high, causes=causes)


def _level_rows(level: Level, players: _Players, found: _Values, sources: SourcesConfig) -> list[dict[str, Any]]:
    counts, tokens = (level.summed(players.column(name)[0]) for name in ("n_documents", "n_tokens"))
    if level.names != players.names:
        found = _at_level(level, players, found, sources)
    values = found.values
    unknown = np.full(values.shape, np.nan)
    causes = {f"error_{name}": found.causes.get(name, unknown) for name in ("coalitions", "documents", "queries")}
    share = shares(values)
    return [
        {
            "query_id": query_id,
            "source": name,
            "value": float(values[row, column]),
            "standard_error": _or_none(found.errors[row, column]),
            "low": _or_none(found.low[row, column]),
            "high": _or_none(found.high[row, column]),
            "share": _or_none(share[row, column]),
            "n_documents": int(counts[column]),
            "n_tokens": int(tokens[column]),
            "game": found.game,
            "semivalue": sources.semivalue,
            "grouping": players.grouping,
            "level": level.number,
            **{name: _or_none(errors[row, column]) for name, errors in causes.items()},
        }
        for row, query_id in enumerate(players.query_ids)
        for column, name in enumerate(level.names)
    ]


def _or_none(value: np.float64) -> float | None:
    return None if math.isnan(value) else float(value)
