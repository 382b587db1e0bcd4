"""A valuation, however it was started: for each checkpoint its stores, its scores and the values of the sources."""

from dataclasses import dataclass

from dataworth.candidates import candidates_of
from dataworth.command.options import command_here
from dataworth.config import ValueConfig, run_title
from dataworth.preparing import Steps, store_folder
from dataworth.scored import (
    Made,
    Point,
    Timings,
    all_scores_of,
    made_stores,
    narrowed,
    points_of,
    scores_at,
    scores_of,
    sums_only,
    tokens_of,
)
from dataworth.storage.errors import InputError
from dataworth.storage.ref import StoreRef
from dataworth.tasks.coalitions.parts import GameParts
from dataworth.tasks.coalitions.registry import GAMES
from dataworth.tasks.counterfactual.problem import CheckpointProblem
from dataworth.tasks.model.alike import refuse_other_layers, refuse_other_tokenizers, refuse_same_weights
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.progress import run_logger
from dataworth.tasks.report.results.valuation import CheckpointParts, ValuationParts
from dataworth.tasks.scoring.ready import Pass

__all__ = ["Checkpoint", "Timings", "refuse_unlike", "valued", "valued_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint valued by itself.

    Args:
        model_name, model_fingerprint: of its weights.
        corpus, queries, gradients, query_gradients, curvature: its stores; no curvature for `none`.
        scores, values: of each grouping of the sources, in their order.
        points: where its gradients were taken.
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
    points: list[Point]

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
    made: Made = steps.in_turn(narrowed(config), lambda: made_stores(config, store, queries, seconds, steps))
    points = points_of(config, store, made, seconds, steps)
    with seconds.step("score"):
        all_scores = scores_at(config, store, points, steps)
    if len(points) > 1:
        config = config.model_copy(update={"model": config.model.model_copy(update={"point": "both"})})
    with seconds.step("value"):
        values = _all_values(config, store, made, all_scores, steps)
        if config.sources.projection_seeds > 1:
            values = _over_projections(config, store, made.queries, values, steps)
    return Checkpoint(
        model_name=config.model.only.name,
        model_fingerprint=load(config.model.only).fingerprint,
        corpus=made.prepared.corpus,
        queries=made.queries,
        gradients=made.gradients,
        query_gradients=made.query_gradients,
        curvature=made.curvature,
        scores=all_scores,
        values=values,
        points=points,
    )


def _all_values(
    config: ValueConfig, store: str, made: Made, all_scores: list[StoreRef], steps: Steps
) -> list[StoreRef]:
    """Values of the sources for each grouping."""
    return [
        steps.value_sources(store, scores, config.sources, _game_parts(config, made, grouping, steps), config.cluster)
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
        made = made_stores(seeded, store, queries, Timings(), steps)
        by_seed.append(_all_values(seeded, store, made, all_scores_of(seeded, store, made, steps), steps))
    return [steps.average_values(store, list(each), config.sources.confidence) for each in zip(*by_seed, strict=True)]


def _game_parts(config: ValueConfig, made: Made, grouping: str, steps: Steps) -> GameParts | None:
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
        query_gradients=made.query_gradients,
        bases=prepared.bases,
        sums={},
        factors=None,
        damping=curvature.damping,
        corpus=prepared.corpus,
        gradients=made.gradients,
        curvature=curvature,
    )
    if made_of == "trainings" or config.sources.trainings:
        parts = parts.model_copy(update={"training": config.recipe, "checkpoints": _checkpoints(config)})
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


def _checkpoints(config: ValueConfig) -> tuple[str, ...]:
    """Fingerprints of the weights of the checkpoints between base and model: their folders may hold others tomorrow."""
    model = config.model.only
    spelled = {"tokenizer": model.tokenizer or model.name}  # which a training often keeps with the model alone
    named = [model.model_copy(update={"name": name, **spelled}) for name in config.sources.checkpoints]
    return tuple(load(each).fingerprint for each in named)


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
    points = [point for each in made for point in each.points]
    with seconds.step("tokens"):
        tokens = tokens_of(config, store, points, scores[0], steps)
    candidates = candidates_of(config, store, points, seconds, steps)
    parts = _parts(config, store, made, scores[0], values, seconds)
    return parts.model_copy(update={"certificate": certificate, "candidates": candidates, "tokens": tokens})


def _certificate(config: ValueConfig, store: str, made: Checkpoint, steps: Steps, seconds: Timings) -> StoreRef:
    """Trainings without some documents, beside what the scores said of them; another pass keeps every score."""
    matrix = config.scoring.model_copy(update={"save_matrix": True})
    stores = (made.corpus, made.gradients, made.queries, made.query_gradients, made.curvature)
    scores = scores_of(config, store, stores, matrix, config.sources.by[0], steps)
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
