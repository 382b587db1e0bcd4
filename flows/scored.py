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
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.progress import run_logger
from dataworth.tasks.report.results.machine import MachineSamples
from dataworth.tasks.scoring.config import ScoringConfig
from dataworth.tasks.scoring.ready import Pass

__all__ = [
    "Made",
    "Timings",
    "all_scores_of",
    "at_base",
    "made_stores",
    "narrowed",
    "query_gradients_of",
    "scores_of",
    "scores_of_both",
    "sums_only",
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
    """What valuations of the same corpus share, and the queries."""

    prepared: Prepared
    queries: StoreRef
    curvature: StoreRef | None
    gradients: StoreRef


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
    with seconds.step("index"):
        gradients = steps.index(own, prepared)
    return Made(prepared, queries, fitted[0] if fitted else None, gradients)


def query_gradients_of(config: ValueConfig, store: str, made: Made, steps: Steps) -> StoreRef:
    """Of the queries, in float32."""
    precise = GradientsConfig(dtype="float32", batch_tokens=config.gradients.batch_tokens)
    return steps.index_gradients(
        store, config.model.only, made.queries, made.prepared.bases, precise, what="the queries"
    )


def all_scores_of(
    config: ValueConfig, store: str, made: Made, query_gradients: StoreRef, steps: Steps
) -> list[StoreRef]:
    """A scoring pass for each grouping of the sources."""
    return [
        scores_of(
            config,
            store,
            (made.prepared.corpus, made.gradients, made.queries, query_gradients, made.curvature),
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


def at_base(config: ValueConfig) -> ValueConfig | None:
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


def scores_of_both(
    config: ValueConfig,
    begun: ValueConfig,
    store: str,
    made: Made,
    query_gradients: StoreRef,
    seconds: Timings,
    steps: Steps,
) -> list[StoreRef]:
    """Scores of the model and of its base, in a weighted mean, for each grouping of the sources."""
    every = config.scoring.model_copy(update={"save_matrix": True})
    made_there = steps.in_turn(narrowed(begun), lambda: made_stores(begun, store, made.queries, seconds, steps))
    with seconds.step("queries"):
        of_base = query_gradients_of(begun, store, made_there, steps)
    passes = []
    with seconds.step("score"):
        for one, own, asked, weight in (
            (config, made, query_gradients, OF_MODEL),
            (begun, made_there, of_base, OF_BASE),
        ):
            stores = (own.prepared.corpus, own.gradients, own.queries, asked, own.curvature)
            scores = scores_of(one, store, stores, every, config.sources.by[0], steps)
            passes.append(
                Pass(
                    gradients=own.gradients,
                    query_gradients=asked,
                    curvature=own.curvature,
                    scores=scores,
                    weight=weight,
                )
            )
    damping, corpus = config.curvature.damping, made.prepared.corpus
    with seconds.step("average"):
        return [
            steps.average_scores(
                store,
                corpus,
                made.queries,
                passes,
                damping,
                config.scoring if number == 0 else sums_only(config.scoring),
                grouping,
            )
            for number, grouping in enumerate(config.sources.by)
        ]


def narrowed(config: ValueConfig) -> CorpusRunConfig:
    """The part of a configuration that the other flows take."""
    return CorpusRunConfig.model_validate(config.model_dump(include=set(CorpusRunConfig.model_fields)))


def sums_only(scoring: ScoringConfig) -> ScoringConfig:
    """How to score for a further grouping: keep sums alone, as passages and matrix are those of the first."""
    return scoring.model_copy(update={"top_k": 1, "save_matrix": False, "by_layer": False})
