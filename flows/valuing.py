"""A valuation, however it was started: for each checkpoint its stores, its scores and the values of the sources."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dataworth.command.options import command_here
from dataworth.config import CorpusRunConfig, ValueConfig, run_title
from dataworth.preparing import Prepared, Steps, prepared_stores, store_folder
from dataworth.storage.errors import InputError
from dataworth.storage.ref import StoreRef
from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.parts import GameParts
from dataworth.tasks.coalitions.registry import GAMES
from dataworth.tasks.counterfactual.problem import CheckpointProblem
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.model.alike import refuse_other_layers, refuse_other_tokenizers, refuse_same_weights
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.progress import run_logger
from dataworth.tasks.report.results.machine import MachineSamples
from dataworth.tasks.report.results.valuation import CheckpointParts, ValuationParts
from dataworth.tasks.scoring.config import ScoringConfig
from dataworth.tasks.scoring.ready import Pass

__all__ = ["Checkpoint", "Timings", "refuse_unlike", "sums_only", "valued", "valued_checkpoint"]

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
    config: ValueConfig, store: str, queries: StoreRef | None, seconds: Timings, steps: Steps
) -> Checkpoint:
    """Find or build gradients and curvature of one checkpoint, score, value the sources.

    Args:
        config: everything, for one checkpoint.
        store: root of the stores.
        queries: as an earlier checkpoint completed them; None: this one does.
        seconds: gets those of the steps.
        steps: as the door takes them.
    """
    made: _Made = steps.in_turn(_narrowed(config), lambda: _made(config, store, queries, seconds, steps))
    with seconds.step("queries"):
        query_gradients = _query_gradients(config, store, made, steps)
    begun = _at_base(config)
    if begun is None:
        with seconds.step("score"):
            all_scores = _all_scores(config, store, made, query_gradients, steps)
    else:
        all_scores = _of_both(config, begun, store, made, query_gradients, seconds, steps)
        config = config.model_copy(update={"model": config.model.model_copy(update={"point": "both"})})
    with seconds.step("value"):
        values = _all_values(config, store, made, query_gradients, all_scores, steps)
        if config.sources.projection_seeds > 1:
            values = _over_projections(config, store, made.queries, values, steps)
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


def _of_both(
    config: ValueConfig,
    begun: ValueConfig,
    store: str,
    made: _Made,
    query_gradients: StoreRef,
    seconds: Timings,
    steps: Steps,
) -> list[StoreRef]:
    """Scores of the model and of its base, in a weighted mean, for each grouping of the sources."""
    every = config.scoring.model_copy(update={"save_matrix": True})
    at_base = steps.in_turn(_narrowed(begun), lambda: _made(begun, store, made.queries, seconds, steps))
    with seconds.step("queries"):
        of_base = _query_gradients(begun, store, at_base, steps)
    passes = []
    with seconds.step("score"):
        for one, own, asked, weight in ((config, made, query_gradients, OF_MODEL), (begun, at_base, of_base, OF_BASE)):
            stores = (own.prepared.corpus, own.gradients, own.queries, asked, own.curvature)
            scores = _scores(one, store, stores, every, config.sources.by[0], steps)
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


def _made(config: ValueConfig, store: str, queries: StoreRef | None, seconds: Timings, steps: Steps) -> _Made:
    narrowed = _narrowed(config)
    with seconds.step("prepare"):
        prepared = prepared_stores(config, steps)
        queries = queries or steps.prepare_queries(
            store, config.model.only, config.queries, config.corpus.chat_template
        )
    with seconds.step("fit"):
        fitted = steps.fit(narrowed, prepared)
    with seconds.step("index"):
        gradients = steps.index(narrowed, prepared)
    return _Made(prepared, queries, fitted[0] if fitted else None, gradients)


def _query_gradients(config: ValueConfig, store: str, made: _Made, steps: Steps) -> StoreRef:
    precise = GradientsConfig(dtype="float32", batch_tokens=config.gradients.batch_tokens)
    return steps.index_gradients(
        store, config.model.only, made.queries, made.prepared.bases, precise, what="the queries"
    )


def _all_values(
    config: ValueConfig, store: str, made: _Made, query_gradients: StoreRef, all_scores: list[StoreRef], steps: Steps
) -> list[StoreRef]:
    """Values of the sources for each grouping."""
    return [
        steps.value_sources(
            store, scores, config.sources, _game_parts(config, made, query_gradients, grouping, steps), config.cluster
        )
        for scores, grouping in zip(all_scores, config.sources.by, strict=True)
    ]


def _over_projections(
    config: ValueConfig, store: str, queries: StoreRef, values: list[StoreRef], steps: Steps
) -> list[StoreRef]:
    """Values for each grouping as the mean over projections of other seeds, too."""
    by_seed = [values]
    for number in range(1, config.sources.projection_seeds):
        projection = config.projection.model_copy(update={"seed": config.projection.seed + number})
        scoring = sums_only(config.scoring)
        seeded = config.model_copy(update={"projection": projection, "scoring": scoring})
        made = _made(seeded, store, queries, Timings(), steps)
        query_gradients = _query_gradients(seeded, store, made, steps)
        all_scores = _all_scores(seeded, store, made, query_gradients, steps)
        by_seed.append(_all_values(seeded, store, made, query_gradients, all_scores, steps))
    return [steps.average_values(store, list(each), config.sources.confidence) for each in zip(*by_seed, strict=True)]


def _all_scores(
    config: ValueConfig, store: str, made: _Made, query_gradients: StoreRef, steps: Steps
) -> list[StoreRef]:
    """A scoring pass for each grouping of the sources."""
    return [
        _scores(
            config,
            store,
            (made.prepared.corpus, made.gradients, made.queries, query_gradients, made.curvature),
            config.scoring if number == 0 else sums_only(config.scoring),
            grouping,
            steps,
        )
        for number, grouping in enumerate(config.sources.by)
    ]


def _scores(
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


def _game_parts(
    config: ValueConfig, made: _Made, query_gradients: StoreRef, grouping: str, steps: Steps
) -> GameParts | None:
    """What a game of more than scores needs, made where it is not there yet."""
    made_of = GAMES[config.sources.game].made_of
    if made_of == "scores" and not config.sources.trainings and config.model.only.base is None:
        return None
    store, curvature, prepared = store_folder(config), config.curvature, made.prepared
    model = config.model.only
    if made_of == "sums" and config.model.base is None:  # not the one that adapters name
        model = model.model_copy(update={"base": None})
    needs_base = made_of != "scores" or bool(config.sources.trainings)
    base = _base(model, needs_base)
    if base is None and not needs_base:
        return None
    parts = GameParts(
        model=model,
        base=base,
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
    if made_of == "trainings" or config.sources.trainings:
        parts = parts.model_copy(update={"training": config.recipe})
    if made_of != "sums":
        return parts
    sums = steps.fit_source_sums(
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
    factors = steps.fit_query_factors(store, config.model.only, made.queries, prepared.bases, curvature)
    return parts.model_copy(update={"sums": sums, "factors": factors})


def _base(model: ModelConfig, is_needed: bool) -> str | None:
    """Fingerprint of the base's weights; None where there is none, or it cannot be loaded and is of the total alone."""
    if model.base is None:
        return None
    try:
        return load(model, 1.0).fingerprint
    except InputError as error:
        if is_needed:
            raise
        run_logger().warning("what training took off the queries is not measured: %s", error)
        return None


def _narrowed(config: ValueConfig) -> CorpusRunConfig:
    """The part of a configuration that the other flows take."""
    return CorpusRunConfig.model_validate(config.model_dump(include=set(CorpusRunConfig.model_fields)))


def sums_only(scoring: ScoringConfig) -> ScoringConfig:
    """How to score for a further grouping: keep sums alone, as passages and matrix are those of the first."""
    return scoring.model_copy(update={"top_k": 1, "save_matrix": False, "by_layer": False})


def refuse_unlike(config: ValueConfig) -> None:
    """Refuse checkpoints that cannot be averaged, before any work is done."""
    checkpoints = config.model.checkpoints
    refuse_other_tokenizers(checkpoints)
    if config.scoring.by_layer:
        refuse_other_layers(checkpoints)
    refuse_same_weights(checkpoints)


def valued(config: ValueConfig, store: str, steps: Steps) -> ValuationParts:
    """Value a corpus under every checkpoint, and average what they say.

    Args:
        config: everything, settled (see ValueConfig.settled).
        store: root of the stores.
        steps: as the door takes them.
    """
    seconds = Timings()
    made: list[Checkpoint] = []
    for one in _by_checkpoint(config):
        made.append(valued_checkpoint(one, store, made[0].queries if made else None, seconds, steps))
    scores, values = made[0].scores, made[0].values
    if len(made) > 1:
        with seconds.step("average"):
            scores, values = _averaged(config, store, made, steps)
    certificate = _certificate(config, store, made[0], steps, seconds) if config.certify else None
    if seconds.machine.missing:
        run_logger().warning(seconds.machine.missing)
    parts = _parts(config, store, made, scores[0], values, seconds)
    return parts.model_copy(update={"certificate": certificate})


def _certificate(config: ValueConfig, store: str, made: Checkpoint, steps: Steps, seconds: Timings) -> StoreRef:
    """Trainings without some documents, beside what the scores said of them; another pass keeps every score."""
    matrix = config.scoring.model_copy(update={"save_matrix": True})
    stores = (made.corpus, made.gradients, made.queries, made.query_gradients, made.curvature)
    scores = _scores(config, store, stores, matrix, config.sources.by[0], steps)
    title = run_title(config.model.name, config.corpus.files)
    place = CheckpointProblem((config.model.only,), made.corpus, made.queries, config.recipe, title)
    with seconds.step("certify"):
        return steps.certify(store, place, scores, config.certify, config.sources.seed, config.cluster)


def _by_checkpoint(config: ValueConfig) -> list[ValueConfig]:
    """The same valuation for each checkpoint; of several, every score is kept until they are averaged."""
    if len(config.model.name) == 1:
        return [config]
    scoring = config.scoring.model_copy(update={"save_matrix": True})
    return config.model_copy(update={"scoring": scoring}).by_checkpoint


def _averaged(
    config: ValueConfig, store: str, checkpoints: list[Checkpoint], steps: Steps
) -> tuple[list[StoreRef], list[StoreRef]]:
    """Scores and values, the means over the checkpoints, of each grouping of the sources."""
    first = checkpoints[0]
    if any(each.corpus != first.corpus for each in checkpoints):
        raise InputError("--corpus: changed while one checkpoint after another was valued; run again")
    passes, damping = [each.scored for each in checkpoints], config.curvature.damping
    all_scores: list[StoreRef] = []
    all_values: list[StoreRef] = []
    for number, grouping in enumerate(config.sources.by):
        scoring = config.scoring if number == 0 else sums_only(config.scoring)
        scores = steps.average_scores(store, first.corpus, first.queries, passes, damping, scoring, grouping)
        tables = [each.values[number] for each in checkpoints]
        all_scores.append(scores)
        all_values.append(steps.average_values(store, tables, config.sources.confidence, "checkpoint", scores))
    return all_scores, all_values


def _parts(
    config: ValueConfig,
    store: str,
    checkpoints: list[Checkpoint],
    scores: StoreRef,
    values: list[StoreRef],
    seconds: Timings,
) -> ValuationParts:
    """Everything the valuation was made from; stores of a single checkpoint are the first's."""
    first = checkpoints[0]
    own, *further = values
    parts = tuple(
        CheckpointParts(
            model_name=each.model_name,
            model_fingerprint=each.model_fingerprint,
            gradients=each.gradients,
            query_gradients=each.query_gradients,
            curvature=each.curvature,
            scores=each.scores[0],
            values=each.values[0],
        )
        for each in checkpoints
    )
    return ValuationParts(
        title=run_title(config.model.name, config.corpus.files),
        parameters=config.model_dump(mode="json"),
        corpus=first.corpus,
        queries=first.queries,
        gradients=first.gradients,
        curvature=first.curvature,
        scores=scores,
        values=own,
        further_values=tuple(further),
        payout=config.sources.payout,
        model_name=", ".join(each.model_name for each in parts),
        model_fingerprint=", ".join(each.model_fingerprint for each in parts),
        query_gradients=first.query_gradients,
        checkpoints=parts if len(checkpoints) > 1 else (),
        command=command_here("value", config.model_copy(update={"store": store})),
        timings=dict(seconds),
        started=seconds.started,
        machine=tuple(seconds.machine.rows),
    )
