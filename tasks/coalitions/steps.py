"""The step that turns the sums of a scoring pass into values of sources."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dataworth.storage.coalitions import CoalitionStore, UtilityStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.locations import StoreFolders
from dataworth.storage.place import Location
from dataworth.storage.ref import StoreRef, fingerprint
from dataworth.storage.schema import DOCUMENT_VALUES, OVERLAP, VALUES
from dataworth.storage.scores import ScoreStore
from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.correction import corrected
from dataworth.tasks.coalitions.games.source_game import Game, Material, NothingKept, UtilityKeeper, game_class
from dataworth.tasks.coalitions.parts import GameParts
from dataworth.tasks.coalitions.players import Players
from dataworth.tasks.coalitions.registry import FALLBACK, GAMES
from dataworth.tasks.coalitions.uncertainty.averages import (
    Repeated,
    averaged_tables,
    mean_document_values,
    mean_overlap,
)
from dataworth.tasks.coalitions.valuation import ASKED_NOW, Kind, Valuation
from dataworth.tasks.coalitions.values import value_rows
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.corpus.groups import SOURCE
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.keeping import kept
from dataworth.tasks.model.loading import load
from dataworth.tasks.progress import run_logger
from dataworth.tasks.training.merging import ALGORITHM as MERGING

__all__ = ["GameParts", "average_values", "game_fingerprint", "value_sources"]

ALGORITHM = 11
UTILITIES = 3
AVERAGES = 2
LOCAL = ClusterConfig()
# A coalition is trained for the same epochs on fewer documents, so by fewer steps.
COUNTERFACTUAL = "epochs"
# What to pass where some are valued by the game that was asked for, and some fell back to the additive one.
REMEDIES = {
    "projection": ("sources.projection_seeds", "raise", "projection.rank", ""),
    "checkpoint": ("model.name", "pass", "sources.game", " additive"),
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
            the utilities of an evaluated one, and train in retrain.
    """
    parts = {
        "values": ALGORITHM,
        "scores": scores.fingerprint,
        **sources.model_dump(exclude={"by", "payout", "projection_seeds", "checkpoints"}),
        "budget": sources.most_coalitions,
    }
    if game is not None:
        parts["game parts"] = game.identity

    def build(root: Location, name: str) -> None:
        opened = ScoreStore.open(scores)
        table = opened.source_sums.to_pandas()
        players = Players(
            query_ids=table["query_id"].drop_duplicates().to_list(),
            names=table["source"].drop_duplicates().to_list(),
            grouping=opened.attributes.get("grouping", SOURCE),
            table=table,
        )
        material = Material(store, players, sources, game, cluster, _trainings(store, players, sources, game, scores))
        valuation = _measured(_played(material, scores), game, sources)
        notes = dict(valuation.facts)
        asked = notes.pop(ASKED_NOW, None)  # of this run, not of the values
        if asked is not None:
            run_logger().info("%s coalitions were asked for now", f"{asked:,}")
        attributes = {**parts, "game": valuation.game, "notes": notes}
        rows = value_rows(players, valuation, sources)
        CoalitionStore.write(root, name, rows, attributes, valuation.overlap, valuation.documents)

    return kept(store, "coalitions", parts, "values", build)


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

    def build(root: Location, name: str) -> None:
        try:
            table = averaged_tables([each.values.to_pandas() for each in stores], confidence, repeated)
        except ValueError as error:
            at_fault, verb, remedy, value = REMEDIES[repeated]
            raise InputError(f"{setting(at_fault)}: {error}; {verb} {setting(remedy)}{value}") from None
        rows = pa.Table.from_pandas(table, VALUES, preserve_index=False).to_pylist()
        overlap = _mean_rows([each.overlap for each in stores], mean_overlap, OVERLAP)
        documents = _mean_rows([each.documents for each in stores], mean_document_values, DOCUMENT_VALUES)
        attributes = {**stores[0].attributes, **parts, "notes": _mean_notes(stores, repeated)}
        CoalitionStore.write(root, name, rows, attributes, overlap, documents)

    return kept(store, "coalitions", parts, f"values averaged over the {repeated}s", build)


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
    all_notes = [each.attributes["notes"] for each in stores]
    counted = f"{len(stores)} seeds" if repeated == "projection" else f"{len(stores)} of them"
    notes = all_notes[0] | {
        f"{repeated}s": len(stores),
        "errors": f"{all_notes[0]['errors']}; of the {repeated}, by {counted}",
    }
    for name in ("total", "accounted for"):  # of the first; the table has the mean
        notes.pop(name, None)
    if "reliable" in all_notes[0]:
        notes["reliable"] = all(each.get("reliable", True) for each in all_notes)
    return dict(notes)


def game_fingerprint(game: GameParts, sources: SourcesConfig, scores: str) -> str:
    """Of the UtilityStore of a game, in StoreFolders.games; `scores` is the fingerprint of the scoring pass."""
    parts: dict[str, Any] = {"game": UTILITIES, "sources": sources.model_dump(include={"game", "utility", "pull"})}
    if sources.game == "merged":
        parts["merging"] = MERGING
    return fingerprint(parts | game.identity | {"scores": scores})


def _played(material: Material, scores: StoreRef) -> Valuation:
    """By the game that was asked for; by the fallback where that is not to be trusted for this model."""
    parts, sources = material.parts, material.sources
    kept: UtilityKeeper = NothingKept()
    if parts is not None and GAMES[sources.game].made_of != "scores":
        name = game_fingerprint(parts, sources, scores.fingerprint)
        kept = UtilityStore.create(StoreFolders(material.store).games, name, _attributes(scores, material.players))
    with game_class(sources.game if sources.game in GAMES else FALLBACK).made(material, kept) as game:
        checked = game.check()
        for line in checked.sentences() if checked else ():
            run_logger().info(line)
        if checked is None or checked.reliable or not sources.fallback:
            valuation = game.valuation()
            facts = {**(checked.facts() if checked else {}), **valuation.facts}
            return _corrected(material, replace(valuation, facts=facts), game.surrogate())
    said = "%s: valued by the %s game instead (%s)"
    run_logger().warning(said, checked.reason, FALLBACK, setting("sources.fallback"))
    instead = game_class(FALLBACK).made(material, NothingKept()).valuation()
    instead = instead.with_facts(**checked.facts(), fallback=f"{sources.game}: {checked.reason}")
    return _corrected(material, instead, None)


def _measured(valuation: Valuation, parts: GameParts | None, sources: SourcesConfig) -> Valuation:
    """What the values are of: with the total that training took off the queries' losses, where a base is known."""
    if parts is None or parts.base is None:
        return valuation
    queries = CorpusStore.open(parts.queries)
    windows = GradientStore.open(parts.query_gradients).column_of("loss", queries.contents)
    of_model = np.array([losses.sum(dtype=np.float64) for losses in windows])
    taken = query_losses(load(parts.model, 1.0), queries) - of_model
    total = np.append(taken, taken.sum())
    entry = GAMES[valuation.game]
    kind: Kind = "marginal"
    if parts.model.point == "both" and valuation.game == FALLBACK and not sources.trainings:
        whole = float(valuation.values[-1].sum())
        # Of values that cancel each other, what is left over would be scaled.
        if total[-1] > 0 and whole > np.abs(valuation.values[-1]).sum() / 2:
            kind, valuation = "share", valuation.scaled(float(total[-1]) / whole)
    if entry.shares_total and (sources.semivalue == "shapley" or not entry.is_semivalue):  # others do not add up to it
        kind = "certified" if entry.is_truth and valuation.facts.get("reliable") else "share"
    facts: dict[str, Any] = {"total": float(total[-1]), "counterfactual": COUNTERFACTUAL}
    if total[-1] > 0 and "scaled by" not in valuation.facts:
        facts["accounted for"] = float(valuation.values[-1].sum() / total[-1])
    return replace(valuation, kind=kind, total=total).with_facts(**facts)


def _trainings(
    store: str, players: Players, sources: SourcesConfig, parts: GameParts | None, scores: StoreRef
) -> UtilityStore | None:
    """The same one whatever the game: those of the game retrain are known to the others, and theirs to it."""
    if parts is None or parts.training is None:
        return None
    alone = parts.model_copy(update={"sums": {}, "factors": None, "checkpoints": ()})
    retrain = sources.model_copy(update={"game": "retrain", "utility": "auto", "pull": None})
    name = game_fingerprint(alone, retrain, scores.fingerprint)
    return UtilityStore.create(StoreFolders(store).games, name, _attributes(scores, players))


def _attributes(scores: StoreRef, players: Players) -> dict[str, Any]:
    return {"scores": scores.fingerprint, "players": players.names}


def _corrected(material: Material, valuation: Valuation, surrogate: Game | None) -> Valuation:
    """By trainings, where some are asked for."""
    if not material.sources.trainings:
        return valuation
    return corrected(material, valuation, surrogate, material.kept_trainings)
