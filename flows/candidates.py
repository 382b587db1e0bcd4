"""Documents that a model was not trained on: what the queries would gain, were they added."""

from dataworth.config import ValueConfig
from dataworth.preparing import Prepared, Steps, store_folder
from dataworth.scored import Point, Timings, narrowed
from dataworth.storage.ref import StoreRef
from dataworth.tasks.progress import run_logger
from dataworth.tasks.report.results.candidates import CandidateParts

__all__ = ["candidates_of"]


def candidates_of(
    config: ValueConfig, store: str, points: list[Point], seconds: Timings, steps: Steps
) -> CandidateParts | None:
    """Scores and values of the candidates; None where there are none.

    A candidate's score is that of a document of the corpus with the same gradient: what it would take off the loss of a
    query, in nats, were it added to the training as one more. Gradients and curvature are those of the corpus.

    Args:
        config: everything.
        store: root of the stores.
        points: of all checkpoints; scores are the weighted mean.
        seconds: gets those of the steps.
        steps: as the door takes them.
    """
    if not config.candidates.files:
        return None
    run_logger().info("candidates, which the model was not trained on: %s", ", ".join(config.candidates.files))
    grouping, damping = config.sources.by[0], config.curvature.damping
    scoring = config.scoring.model_copy(update={"sources": [], "without_sources": [], "by_layer": False})
    every = scoring.model_copy(update={"save_matrix": True})
    with seconds.step("candidates"):
        made = [_indexed(each, config.candidates.files, steps) for each in points]
        (corpus, _), trained, queries = made[0], points[0].made.prepared.corpus, points[0].made.queries
        scores = [
            steps.score_corpus(
                *(store, corpus, gradients, queries, each.made.query_gradients, each.made.curvature, damping),
                scoring if len(points) == 1 else every,
                config.cluster,
                grouping,
                trained,
            )
            for each, (_, gradients) in zip(points, made, strict=True)
        ]
        mean = scores[0]
        if len(points) > 1:
            passes = [
                each.scored(of_point, gradients)
                for each, of_point, (_, gradients) in zip(points, scores, made, strict=True)
            ]
            mean = steps.average_scores(store, corpus, queries, passes, damping, scoring, grouping, trained)
        values = steps.value_sources(store, mean, config.sources.summed, None, config.cluster)
        trainings = []
        if config.candidates.epochs:
            recipe = config.recipe.model_copy(update={"epochs": config.candidates.epochs})
            trainings = [
                steps.train_on_candidates(store, each.config.model.only, corpus, queries, grouping, recipe)
                for each in points
                if not each.is_base
            ]
    return CandidateParts(corpus=corpus, scores=mean, values=values, trainings=tuple(trainings))


def _indexed(point: Point, files: list[str], steps: Steps) -> tuple[StoreRef, StoreRef]:
    """The candidates' corpus and gradients; bases and curvature are those of the documents of the training."""
    read = point.config.corpus.model_copy(update={"files": files})
    own = narrowed(point.config.model_copy(update={"corpus": read}))
    corpus = steps.prepare_corpus(store_folder(own), own.model.only, read)
    prepared = Prepared(corpus=corpus, bases=point.made.row_bases)
    return corpus, steps.in_turn(own, lambda: steps.index(own, prepared))
