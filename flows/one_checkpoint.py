"""What a valuation makes of one checkpoint: its stores, its scores, the values of the sources."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from prefect.client.schemas.objects import State

from dataworth.config import CorpusRunConfig, ValueConfig
from dataworth.fit_curvature import Prepared, fit_curvature, prepared_stores, store_folder
from dataworth.index_corpus import index_corpus
from dataworth.lifecycle.turns import in_turn, run_turn
from dataworth.storage.ref import StoreRef
from dataworth.tasks.coalitions.parts import GameParts
from dataworth.tasks.coalitions.task import average_values, value_sources
from dataworth.tasks.corpus.task import prepare_queries
from dataworth.tasks.curvature.task import fit_query_factors, fit_source_sums
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.gradients.task import index_gradients
from dataworth.tasks.model.loading import load
from dataworth.tasks.report.results.machine import MachineSamples
from dataworth.tasks.scoring.config import ScoringConfig
from dataworth.tasks.scoring.ready import Pass
from dataworth.tasks.scoring.task import score_corpus

__all__ = ["Checkpoint", "Timings", "sums_only", "valued_checkpoint"]


class Timings(dict[str, float]):
    """Seconds of each step, over all checkpoints, when it first started, and what the machine did meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.started: dict[str, float] = {}
        self.machine = MachineSamples()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        self.started.setdefault(name, time.time())
        with self.machine.watching():
            yield
        self[name] = round(self.get(name, 0.0) + time.monotonic() - start, 3)


@dataclass(frozen=True)
class _Made:
    """What valuations of the same corpus share, and the queries."""

    prepared: Prepared
    queries: StoreRef
    curvature: StoreRef | None
    gradients: StoreRef


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint valued by itself.

    Args:
        model_name, model_fingerprint: of its weights.
        corpus, queries, gradients, query_gradients, curvature: its stores; no curvature for `none`.
        scores, values: of each grouping of the sources, in their order.
    """

    model_name: str
    model_fingerprint: str
    corpus: StoreRef
    queries: StoreRef
    gradients: StoreRef
    query_gradients: StoreRef
    curvature: StoreRef | None
    scores: list[StoreRef]
    values: list[StoreRef]

    @property
    def scored(self) -> Pass:
        """The scoring pass, of the first grouping."""
        return Pass(
            gradients=self.gradients,
            query_gradients=self.query_gradients,
            curvature=self.curvature,
            scores=self.scores[0],
        )


def valued_checkpoint(
    config: ValueConfig, store: str, queries: StoreRef | None, seconds: Timings
) -> Checkpoint | State[Any]:
    """Find or build gradients and curvature of one checkpoint, score, value the sources.

    Args:
        config: everything, for one checkpoint.
        store: root of the stores.
        queries: as an earlier checkpoint completed them; None: this one does.
        seconds: gets those of the steps.

    Returns:
        What it left; the state Skipped where another run was under way and `overlap` is `skip`.
    """
    turn = run_turn(store, _narrowed(config))
    made = in_turn(turn, config.overlap, lambda: _made(config, store, queries, seconds))
    if isinstance(made, State):
        return made
    with seconds.step("queries"):
        query_gradients = _query_gradients(config, store, made)
    with seconds.step("score"):
        all_scores = _all_scores(config, store, made, query_gradients)
    with seconds.step("value"):
        values = _all_values(config, store, made, query_gradients, all_scores)
        if config.sources.projection_seeds > 1:
            values = _over_projections(config, store, made.queries, values)
    return Checkpoint(
        model_name=config.model.only.name,
        model_fingerprint=load(config.model.only).fingerprint,
        corpus=made.prepared.corpus,
        queries=made.queries,
        gradients=made.gradients,
        query_gradients=query_gradients,
        curvature=made.curvature,
        scores=all_scores,
        values=values,
    )


def _made(config: ValueConfig, store: str, queries: StoreRef | None, seconds: Timings) -> _Made:
    narrowed = _narrowed(config)
    with seconds.step("prepare"):
        prepared = prepared_stores(config)
        queries = queries or prepare_queries(store, config.model.only, config.queries)
    # With `prepared`, which says that the turn is taken, neither is skipped.
    with seconds.step("fit"):
        fitted = cast(list[StoreRef], fit_curvature(narrowed, prepared))
    with seconds.step("index"):
        (gradients,) = cast(list[StoreRef], index_corpus(narrowed, prepared))
    return _Made(prepared, queries, fitted[0] if fitted else None, gradients)


def _query_gradients(config: ValueConfig, store: str, made: _Made) -> StoreRef:
    precise = GradientsConfig(dtype="float32", batch_tokens=config.gradients.batch_tokens)
    return index_gradients(store, config.model.only, made.queries, made.prepared.bases, precise, what="the queries")


def _all_values(
    config: ValueConfig, store: str, made: _Made, query_gradients: StoreRef, all_scores: list[StoreRef]
) -> list[StoreRef]:
    """Values of the sources for each grouping."""
    return [
        value_sources(
            store, scores, config.sources, _game_parts(config, made, query_gradients, grouping), config.cluster
        )
        for scores, grouping in zip(all_scores, config.sources.by, strict=True)
    ]


def _over_projections(config: ValueConfig, store: str, queries: StoreRef, values: list[StoreRef]) -> list[StoreRef]:
    """Values for each grouping as the mean over projections of other seeds, too."""
    by_seed = [values]
    for number in range(1, config.sources.projection_seeds):
        projection = config.projection.model_copy(update={"seed": config.projection.seed + number})
        scoring = sums_only(config.scoring)
        seeded = config.model_copy(update={"projection": projection, "scoring": scoring})
        made = _made(seeded, store, queries, Timings())
        query_gradients = _query_gradients(seeded, store, made)
        all_scores = _all_scores(seeded, store, made, query_gradients)
        by_seed.append(_all_values(seeded, store, made, query_gradients, all_scores))
    return [average_values(store, list(each), config.sources.confidence) for each in zip(*by_seed, strict=True)]


def _all_scores(config: ValueConfig, store: str, made: _Made, query_gradients: StoreRef) -> list[StoreRef]:
    """A scoring pass for each grouping of the sources."""
    return [
        score_corpus(
            store,
            made.prepared.corpus,
            made.gradients,
            made.queries,
            query_gradients,
            made.curvature,
            config.curvature.damping,
            config.scoring if number == 0 else sums_only(config.scoring),
            config.cluster,
            grouping,
        )
        for number, grouping in enumerate(config.sources.by)
    ]


def _game_parts(config: ValueConfig, made: _Made, query_gradients: StoreRef, grouping: str) -> GameParts | None:
    """What a game other than the additive one needs, made where it is not there yet."""
    if config.sources.game == "additive":
        return None
    store, curvature, prepared = store_folder(config), config.curvature, made.prepared
    model = config.model.only
    parts = GameParts(
        model=model,
        base=None if model.base is None else load(model, 1.0).fingerprint,
        queries=made.queries,
        query_gradients=query_gradients,
        bases=prepared.bases,
        sums={},
        factors=None,
        damping=curvature.damping,
        corpus=prepared.corpus,
        gradients=made.gradients,
        curvature=curvature,
    )
    if config.sources.game == "retrain":
        return parts.model_copy(update={"training": config.training})
    sums = fit_source_sums(
        store,
        config.model.only,
        prepared.corpus,
        prepared.bases,
        made.gradients,
        curvature,
        config.gradients.batch_tokens,
        grouping,
        config.sources.document_groups,
    )
    factors = fit_query_factors(store, config.model.only, made.queries, prepared.bases, curvature)
    return parts.model_copy(update={"sums": sums, "factors": factors})


def _narrowed(config: ValueConfig) -> CorpusRunConfig:
    """The part of a configuration that the other flows take."""
    return CorpusRunConfig.model_validate(config.model_dump(include=set(CorpusRunConfig.model_fields)))


def sums_only(scoring: ScoringConfig) -> ScoringConfig:
    """What a pass for a further grouping keeps: passages and matrix are those of the first."""
    return scoring.model_copy(update={"top_k": 1, "save_matrix": False, "by_layer": False})
