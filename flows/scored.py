"""The stores and the scores of one checkpoint, and of it together with the base that its training began from."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dataworth.config import CorpusRunConfig, ValueConfig
from dataworth.preparing import Prepared, Steps, prepared_stores
from dataworth.storage.errors import InputError
from dataworth.storage.ref import StoreRef
from dataworth.storage.spelling import setting
from dataworth.tasks.model.loading import load
from dataworth.tasks.progress import run_logger
from dataworth.tasks.report.results.machine import MachineSamples
from dataworth.tasks.report.results.tokens import TokenParts
from dataworth.tasks.scoring.config import ScoringConfig
from dataworth.tasks.scoring.ready import Pass

__all__ = [
    "Made",
    "Point",
    "Timings",
    "all_scores_of",
    "made_stores",
    "narrowed",
    "points_of",
    "scores_at",
    "scores_of",
    "sums_only",
    "tokens_of",
]

# Of scores in nats at the two points: chosen on one problem and tried on three others (infra/docs/truth.md, "The base
# as a second point").
OF_MODEL, OF_BASE = 0.75, 0.25


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
class Made:
    """What valuations of the same corpus share, and the queries.

    Args:
        prepared: corpus and bases.
        queries: the questions.
        curvature: None for `none`.
        row_bases: what rows of gradients are made with: the bases, or the queries' directions.
        gradients, query_gradients: of documents and queries.
    """

    prepared: Prepared
    queries: StoreRef
    curvature: StoreRef | None
    row_bases: StoreRef
    gradients: StoreRef
    query_gradients: StoreRef

    @property
    def stores(self) -> tuple[StoreRef, StoreRef, StoreRef, StoreRef, StoreRef | None]:
        """What a scoring pass of the corpus reads; see `scores_of`."""
        return self.prepared.corpus, self.gradients, self.queries, self.query_gradients, self.curvature


@dataclass(frozen=True)
class Point:
    """Where gradients are taken.

    Args:
        config: everything, for one checkpoint, or for the base that its training began from.
        made: its stores.
        weight: of its scores in a mean.
    """

    config: ValueConfig
    made: Made
    weight: float = 1.0

    @property
    def is_base(self) -> bool:
        """Is this where the training of a checkpoint began?"""
        return self.config.model.point == "base"

    @property
    def stores(self) -> tuple[StoreRef, StoreRef, StoreRef, StoreRef, StoreRef | None]:
        """What a scoring pass of the corpus reads; see `scores_of`."""
        return self.made.stores

    def scored(self, scores: StoreRef, gradients: StoreRef | None = None) -> Pass:
        """The pass that left these scores.

        Args:
            scores: that it left.
            gradients: of the documents it scored; None: of the corpus.
        """
        return Pass(
            gradients=gradients or self.made.gradients,
            query_gradients=self.made.query_gradients,
            curvature=self.made.curvature,
            scores=scores,
            weight=self.weight,
        )


def made_stores(config: ValueConfig, store: str, queries: StoreRef | None, seconds: Timings, steps: Steps) -> Made:
    """Corpus, bases, queries, curvature and gradients, made where they are not there yet.

    Args:
        config: everything, for one checkpoint.
        store: root of the stores.
        queries: as they were made already; None: they are made.
        seconds: gets those of the steps.
        steps: as the door takes them.
    """
    own = narrowed(config)
    with seconds.step("prepare"):
        prepared = prepared_stores(config, steps)
        queries = queries or steps.prepare_queries(
            store, config.model.only, config.queries, config.corpus.chat_template
        )
    with seconds.step("fit"):
        fitted = steps.fit(own, prepared)
    curvature = fitted[0] if fitted else None
    with seconds.step("queries"):
        row_bases = prepared.bases
        if config.gradients.keep == "none":
            row_bases = steps.make_directions(
                *(store, config.model.only, queries, prepared.bases, curvature),
                *(config.curvature.damping, config.gradients),
            )
        precise = config.gradients.model_copy(update={"dtype": "float32"})
        query_gradients = steps.index_gradients(
            store, config.model.only, queries, row_bases, precise, what="the queries"
        )
    with seconds.step("index"):
        gradients = steps.index(own, prepared.model_copy(update={"bases": row_bases}))
    return Made(prepared, queries, curvature, row_bases, gradients, query_gradients)


def all_scores_of(config: ValueConfig, store: str, made: Made, steps: Steps) -> list[StoreRef]:
    """A scoring pass for each grouping of the sources."""
    return [
        scores_of(
            config,
            store,
            made.stores,
            config.scoring if number == 0 else sums_only(config.scoring),
            grouping,
            steps,
        )
        for number, grouping in enumerate(config.sources.by)
    ]


def scores_of(
    config: ValueConfig,
    store: str,
    stores: tuple[StoreRef, StoreRef, StoreRef, StoreRef, StoreRef | None],
    scoring: ScoringConfig,
    grouping: str,
    steps: Steps,
) -> StoreRef:
    """Scores of a checkpoint, by its gradients or by its training.

    Args:
        config: everything, for one checkpoint.
        store: root of the stores.
        stores: of it: corpus, gradients, queries, their gradients, curvature.
        scoring: what is kept.
        grouping: of the documents.
        steps: as the door takes them.
    """
    corpus, _, queries, *_ = stores
    damping = config.curvature.damping
    if config.method == "influence":
        return steps.score_corpus(store, *stores, damping, scoring, config.cluster, grouping)
    replayed = steps.replay_training(store, config.model.only, corpus, queries, config.recipe, config.orders)
    return steps.replayed_scores(store, *stores, damping, scoring, replayed, grouping)


def _at_base(config: ValueConfig) -> ValueConfig | None:
    """The same where training began, if scores are to be taken there, too; None: of the model alone."""
    if not config.has_points:
        return None
    begun = config.model_copy(update={"model": config.model.model_copy(update={"point": "base"})})
    reason = ""
    try:
        if load(begun.model.only).fingerprint == load(config.model.only).fingerprint:
            reason = f"{setting('model.base')}: has the weights of the model: leave {setting('model.point')} out"
    except InputError as error:
        reason = str(error)
    if reason and config.model.point == "both":
        raise InputError(reason)
    if reason:
        run_logger().warning("gradients are taken of the model alone: %s", reason)
    return None if reason else begun


def points_of(config: ValueConfig, store: str, made: Made, seconds: Timings, steps: Steps) -> list[Point]:
    """Where gradients of a checkpoint are taken: of the model; of its base, too, if that tells more."""
    begun = _at_base(config)
    if begun is None:
        return [Point(config, made)]
    made_there = steps.in_turn(narrowed(begun), lambda: made_stores(begun, store, made.queries, seconds, steps))
    return [Point(config, made, OF_MODEL), Point(begun, made_there, OF_BASE)]


def scores_at(config: ValueConfig, store: str, points: list[Point], steps: Steps) -> list[StoreRef]:
    """Scores of a checkpoint for each grouping of the sources; of several points, in a weighted mean."""
    if len(points) == 1:
        return all_scores_of(config, store, points[0].made, steps)
    every = config.scoring.model_copy(update={"save_matrix": True})
    passes = [
        each.scored(scores_of(each.config, store, each.stores, every, config.sources.by[0], steps)) for each in points
    ]
    damping, made = config.curvature.damping, points[0].made
    return [
        steps.average_scores(
            *(store, made.prepared.corpus, made.queries, passes, damping),
            config.scoring if number == 0 else sums_only(config.scoring),
            grouping,
        )
        for number, grouping in enumerate(config.sources.by)
    ]


def tokens_of(
    config: ValueConfig, store: str, points: list[Point], scores: StoreRef, steps: Steps
) -> tuple[TokenParts, ...]:
    """Which tokens of the best passages taught, at every point; nothing where scores are no sums over tokens.

    Args:
        config: everything.
        store: root of the stores.
        points: of all checkpoints.
        scores: the mean over them, of the first grouping.
        steps: as the door takes them.
    """
    scoring = config.scoring
    if not scoring.tokens or scoring.kind != "dot" or config.method != "influence" or config.model.shard:
        return ()
    found = []
    for each in points:
        corpus, gradients, *others = each.stores
        queries, query_gradients, curvature = others
        parts = steps.tell_tokens(
            *(store, each.config.model.only, corpus, gradients, queries, query_gradients, curvature),
            *(config.curvature.damping, each.made.row_bases, scoring, scores),
        )
        found.append(TokenParts(parts=parts, weight=each.weight))
    return tuple(found)


def narrowed(config: ValueConfig) -> CorpusRunConfig:
    """The part of a configuration that the other flows take."""
    return CorpusRunConfig.model_validate(config.model_dump(include=set(CorpusRunConfig.model_fields)))


def sums_only(scoring: ScoringConfig) -> ScoringConfig:
    """How to score for a further grouping: keep sums alone, as passages and matrix are those of the first."""
    return scoring.model_copy(update={"top_k": 1, "save_matrix": False, "by_layer": False})
