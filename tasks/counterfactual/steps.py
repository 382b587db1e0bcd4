"""The steps of an audit: trainings, scores by every method, steps on the best documents, a choice of settings."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.layer_table import Layer
from dataworth.storage.layers import LayerStore
from dataworth.storage.place import Location
from dataworth.storage.ref import StoreRef, fingerprint
from dataworth.storage.scores import ScoreStore
from dataworth.storage.spelling import setting
from dataworth.tasks.attribution.baselines import bm25_scores
from dataworth.tasks.attribution.logra import scores_by_damping
from dataworth.tasks.attribution.methods import MethodSettings, attributor
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.corpus.examples import Examples, ShuffledLabels
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.counterfactual.certificate import predicted_effects, removals
from dataworth.tasks.counterfactual.choice import Family
from dataworth.tasks.counterfactual.config import AuditConfig
from dataworth.tasks.counterfactual.cost import measured_cost
from dataworth.tasks.counterfactual.designs import random_subsets, tuning_split, without_best, without_each_source
from dataworth.tasks.counterfactual.evaluation import Truth, ceiling_row, mean_with_error, method_rows, source_rows
from dataworth.tasks.counterfactual.parts import Chosen, Findings, MethodRun, Scored
from dataworth.tasks.counterfactual.patch import best_documents, patched_falls
from dataworth.tasks.counterfactual.problem import CheckpointProblem, Problem, ProblemPlace, ReplayableProblem
from dataworth.tasks.counterfactual.randomised import randomised
from dataworth.tasks.counterfactual.trainings import Outcomes
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.keeping import kept
from dataworth.tasks.model.loading import fingerprint_of, load
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.training.reach import RetrainedCheck

__all__ = [
    "attribute",
    "certify",
    "choose",
    "evaluate",
    "patch_tails",
    "sweep",
    "train_subsets",
    "train_without_best",
    "train_without_sources",
]

ATTRIBUTION, PATCH, SWEEP, CERTIFICATE = 2, 2, 2, 1
# The only "layer" of stores that hold matrices of scores.
ONLY = "scores"


def train_subsets(store: str, place: ProblemPlace, audit: AuditConfig, cluster: ClusterConfig) -> StoreRef:
    """Train on every subset with every seed; `masks` (m, n) and `outcomes` (r, q, m), minus the losses in nats."""
    masks = random_subsets(place.opened().examples.n_documents, audit.subsets, audit.fraction, audit.seed)
    return _kept_outcomes(store, place, audit, cluster, "subsets", masks)


def train_without_sources(store: str, place: ProblemPlace, audit: AuditConfig, cluster: ClusterConfig) -> StoreRef:
    """Train on everything, then without each source, by name; as in `train_subsets`."""
    _, masks = without_each_source(place.opened().sources)
    everything = np.ones((1, masks.shape[1]), bool)
    return _kept_outcomes(store, place, audit, cluster, "sources", np.concatenate([everything, masks]))


def train_without_best(
    store: str,
    place: ProblemPlace,
    audit: AuditConfig,
    cluster: ClusterConfig,
    method: str,
    scores: StoreRef,
    queries: list[int],
) -> StoreRef:
    """Train on everything, then without the best documents of each of some queries; as in `train_subsets`."""
    matrix = LayerStore.open(scores).matrix(ONLY, "scores")
    masks = without_best(matrix, np.array(queries), audit.removal)
    everything = np.ones((1, masks.shape[1]), bool)
    return _kept_outcomes(store, place, audit, cluster, f"without best, {method}", np.concatenate([everything, masks]))


def _kept_outcomes(
    store: str, place: ProblemPlace, audit: AuditConfig, cluster: ClusterConfig, what: str, masks: np.ndarray
) -> StoreRef:
    problem = place.opened()
    seeds = list(range(audit.seeds))
    parts = {"trained on": what, "problem": problem.fingerprint, "seeds": seeds}
    parts["corpus"] = problem.contents
    parts["masks"] = fingerprint(np.packbits(masks, axis=1).tolist())

    def build(root: Location, name: str) -> None:
        outcomes = Outcomes(store, place, seeds, cluster).measured(masks)
        LayerStore.write(root, name, [Layer(ONLY)], [{"masks": masks, "outcomes": outcomes}], parts)

    return kept(store, "layers", parts, f"trainings ({what})", build)


def certify(
    store: str, place: CheckpointProblem, scores: StoreRef, count: int, seed: int, cluster: ClusterConfig
) -> StoreRef:
    """Train on everything, then without some documents; `predicted` and `measured` (R, q) nats, `masks` (R, n).

    Args:
        store: root of the stores.
        place: the model that was valued, with the seed of its training.
        scores: of the valuation, with the matrix of all of them.
        count: of removals.
        seed: of those at random.
        cluster: where trainings run.
    """
    corpus, asked = CorpusStore.open(place.corpus), CorpusStore.open(place.queries_ref)
    parts = {"certificate": CERTIFICATE, "problem": place.fingerprint, "training seed": place.training.seed}
    parts |= {"scores": scores.fingerprint, "removals": count, "seed": seed, "corpus": place.contents}

    def build(root: Location, name: str) -> None:
        matrix = ScoreStore.open(scores).matrix
        places = {document: number for number, document in enumerate(corpus.column("document_id").to_pylist())}
        all_scores = np.zeros((asked.n_examples, corpus.n_documents))
        numbers = [places[document] for document in matrix.document_ids]
        all_scores[:, numbers] = matrix.columns(np.arange(len(numbers)))[: asked.n_examples]  # the last row is all
        made = removals(all_scores, place.sources, asked.column("document_id").to_pylist(), count, seed)
        everything = np.ones((1, corpus.n_documents), bool)
        outcomes = Outcomes(store, place, [place.training.seed], cluster)
        losses = outcomes.mean_losses(np.concatenate([everything, ~made.masks]))
        model, base = (query_losses(load(place.checkpoints[0], share), asked).sum() for share in (0.0, 1.0))
        check = RetrainedCheck(float(model), float(losses[0].sum()), float(base))
        effects = {"predicted": predicted_effects(all_scores, made.masks), "measured": losses[1:] - losses[0]}
        attributes = {**parts, "kinds": made.kinds, "names": made.names, "reason": check.reason}
        attributes["tokens"] = (made.masks @ corpus.column("n_tokens").to_numpy()).tolist()
        LayerStore.write(root, name, [Layer(ONLY)], [{**effects, "masks": made.masks}], attributes)

    return kept(store, "layers", parts, "certificate", build)


def attribute(store: str, place: ProblemPlace, run: MethodRun, cluster: ClusterConfig, seeds: int) -> StoreRef:
    """Scores (n_queries, n_documents) of a method, with what it cost.

    Args:
        store: root of the stores.
        place: of the problem.
        run: the method.
        cluster: where methods that train again do so.
        seeds: of those trainings, whose mean is taken.

    Raises:
        InputError, ValueError: the method cannot be used on this problem; the sentence says why.
    """
    problem = place.opened()
    models = list(problem.models())
    parts = {"attribution": ATTRIBUTION, "problem": problem.fingerprint, **run.model_dump(mode="json")}
    parts["corpus"] = problem.contents
    parts["models"] = _identities(models)
    if run.method in ("leave-one-out", "tmc-shapley", "replay"):
        parts["seeds"] = seeds

    def build(root: Location, name: str) -> None:
        examples = ShuffledLabels(problem.examples, run.seed) if run.control == "shuffled" else problem.examples
        changed = randomised(models, run.seed) if run.control == "randomised" else nullcontext()
        with changed, measured_cost() as cost:
            scores = _scores(store, problem, place, models, examples, run, cluster, seeds)
        attributes = {**parts, "seconds": cost.seconds, "bytes": cost.n_bytes}
        LayerStore.write(root, name, [Layer(ONLY)], [{"scores": scores}], attributes)

    return kept(store, "layers", parts, f"scores by {run.title}", build)


def _identities(models: Sequence[Any]) -> list[list[Any]]:
    """Of each model its weights, and the layers whose gradients are taken, which these do not tell."""
    return [[fingerprint_of(model), [layer.name for layer in model.layers]] for model in models]


def _scores(
    store: str,
    problem: Problem,
    place: ProblemPlace,
    models: list[Any],
    examples: Examples,
    run: MethodRun,
    cluster: ClusterConfig,
    seeds: int,
) -> np.ndarray:
    if run.method == "bm25":
        if problem.texts is None:
            raise ValueError("bm25 compares texts, which this problem has none of")
        return bm25_scores(*problem.texts)

    def outcome(masks: np.ndarray) -> np.ndarray:
        return Outcomes(store, place, range(seeds), cluster).mean_losses(masks)

    settings = MethodSettings(
        projection=run.projection,
        curvature=run.curvature,
        classifies=models[0].n_classes is not None,
        weight_decay=problem.weight_decay,
        n_examples=examples.n_examples,
        outcome=outcome,
        seed=run.seed,
        recipe=problem.recipe if isinstance(problem, ReplayableProblem) else None,
        seeds=seeds,
    )
    scores = attributor(run.method, settings).fit(models, examples).score(problem.queries)
    return _of_documents(scores, examples)


def _of_documents(scores: np.ndarray, examples: Examples) -> np.ndarray:
    """(…, n_documents) sums over the examples of each document."""
    sums = np.zeros((examples.n_documents, *scores.shape[:-1]))
    np.add.at(sums, examples.documents, np.moveaxis(scores, -1, 0))
    return np.moveaxis(sums, 0, -1)


def patch_tails(
    store: str, place: ProblemPlace, scores: dict[str, StoreRef], audit: AuditConfig, queries: list[int]
) -> StoreRef:
    """Falls (n_methods, len(queries)) of some queries' losses after a step, at the first model, in nats."""
    problem = place.opened()
    model = problem.models()[0]
    parts = {
        "patch": PATCH,
        "corpus": problem.contents,
        "scores": [ref.fingerprint for ref in scores.values()],  # in their order, as the falls are
        **audit.model_dump(mode="json", include={"patch", "patch_length"}),
        "queries": queries,
    }

    def build(root: Location, name: str) -> None:
        falls = []
        for ref in scores.values():
            own = LayerStore.open(ref).matrix(ONLY, "scores")
            chosen = [(query, best_documents(own[query], audit.patch)) for query in queries]
            falls.append(patched_falls(model, problem.examples, problem.queries, chosen, audit.patch_length))
        LayerStore.write(root, name, [Layer(ONLY)], [{"falls": np.stack(falls)}], parts)

    return kept(store, "layers", parts, "steps on the best documents", build)


def sweep(
    store: str,
    place: ProblemPlace,
    projection: ProjectionConfig,
    curvature: CurvatureConfig,
    dampings: list[DampingConfig],
) -> StoreRef:
    """Scores (n_dampings, n_queries, n_documents) of LoGra under several dampings, from one fit."""
    problem = place.opened()
    models = list(problem.models())
    parts = {
        "sweep": SWEEP,
        "corpus": problem.contents,
        "problem": problem.fingerprint,
        "models": _identities(models),
        "projection": projection.model_dump(mode="json"),
        "curvature": curvature.model_dump(mode="json", exclude={"damping"}),
        "dampings": [each.model_dump(mode="json") for each in dampings],
    }

    def build(root: Location, name: str) -> None:
        start = time.perf_counter()
        by_example = scores_by_damping(models, problem.examples, problem.queries, projection, curvature, dampings)
        scores = _of_documents(by_example, problem.examples)
        attributes = {**parts, "seconds": time.perf_counter() - start}
        LayerStore.write(root, name, [Layer(ONLY)], [{"scores": scores}], attributes)

    return kept(store, "layers", parts, "scores of the sweep", build)


def choose(subsets: StoreRef, tried: list[tuple[Family, StoreRef]], audit: AuditConfig) -> Chosen:
    """The settings with the best score on one half of subsets and queries; the other half is to report on.

    Raises:
        InputError: too few subsets or queries to halve.
    """
    truth = _truth(subsets)
    n_queries, n_subsets = truth.outcomes.shape[1:]
    try:
        looked_at, kept = tuning_split(n_subsets, n_queries, audit.seed)
    except ValueError as error:
        raise InputError(f"{setting('audit.tune')}: {error}") from None
    half = truth.part(*looked_at)
    trials: list[dict[str, Any]] = []
    candidates = []
    for family, ref in tried:
        scores = LayerStore.open(ref).matrix(ONLY, "scores")
        for candidate, each in zip(family.candidates(), scores, strict=True):
            agreement = half.agreement(each[looked_at[1]])
            trials.append({**candidate.described(), "lds": agreement.mean, "standard_error": agreement.standard_error})
            candidates.append(candidate)
    best = candidates[int(np.argmax([trial["lds"] for trial in trials]))]
    return Chosen(
        projection=best.projection,
        curvature=best.curvature,
        trials=trials,
        subsets=kept[0].tolist(),
        queries=kept[1].tolist(),
    )


def evaluate(
    place: ProblemPlace,
    scored: list[Scored],
    subsets: StoreRef,
    sources: StoreRef | None,
    removed: dict[str, StoreRef],
    followed: list[int],
    patched: StoreRef | None,
    chosen: Chosen | None,
) -> Findings:
    """Everything that was measured, as rows of plain values.

    Args:
        place: of the problem.
        scored: every method, the one that others are compared with first, controls last.
        subsets: trainings on subsets.
        sources: trainings without each source.
        removed: trainings without the best documents, by the name of the method.
        followed: the queries whose best documents those are.
        patched: falls after steps, of all but the controls.
        chosen: of a sweep, whose half is left out here.
    """
    problem, truth = place.opened(), _truth(subsets)
    scores = {each.name: LayerStore.open(each.scores).matrix(ONLY, "scores") for each in scored}
    queries = np.arange(truth.outcomes.shape[1])
    if chosen is not None:
        queries = np.array(chosen.queries)
        truth = truth.part(np.array(chosen.subsets), queries)
    rows = method_rows({name: each[queries] for name, each in scores.items()}, truth)
    further = _without_sources(problem, sources, scores, queries)
    falls = {} if patched is None else _falls(scored, patched)
    rises = {name: _rises(ref, followed) for name, ref in removed.items()}
    for row, each in zip(rows, scored, strict=True):
        cost = LayerStore.open(each.scores).attributes
        row |= {"control": each.run.control, "seconds": cost["seconds"], "bytes": cost["bytes"]}
        for column, measured in (("sources", further), ("removal", rises), ("patch", falls)):
            row[column], row[f"{column}_error"] = map(_known, measured.get(each.name, (None, None)))
    return Findings(
        ceiling=ceiling_row(truth),
        rows=rows,
        n_subsets=len(truth.masks),
        n_queries=len(queries),
        n_documents=truth.masks.shape[1],
    )


def _known(value: float | None) -> float | None:
    """JSON has no NaN, which the error of a single query is."""
    return None if value is None or value != value else value


def _truth(subsets: StoreRef) -> Truth:
    trainings = LayerStore.open(subsets)
    return Truth(trainings.matrix(ONLY, "masks").astype(bool), trainings.matrix(ONLY, "outcomes"))


def _without_sources(
    problem: Problem, sources: StoreRef | None, scores: dict[str, np.ndarray], queries: np.ndarray
) -> dict[str, tuple[float, float]]:
    if sources is None:
        return {}
    trainings = LayerStore.open(sources)
    outcomes, present = trainings.matrix(ONLY, "outcomes"), trainings.matrix(ONLY, "masks").astype(bool)[1:]
    outcomes, asked = outcomes[:, queries], {name: each[queries] for name, each in scores.items()}
    return source_rows(asked, ~present, outcomes[:, :, 1:], outcomes[:, :, 0])


def _rises(removed: StoreRef, followed: Sequence[int]) -> tuple[float, float]:
    """Of the loss of each query that is followed, without its best documents: mean, and error over queries."""
    trainings = LayerStore.open(removed)
    lost = trainings.matrix(ONLY, "outcomes").mean(axis=0)
    return mean_with_error([lost[query, 0] - lost[query, 1 + place] for place, query in enumerate(followed)])


def _falls(scored: list[Scored], patched: StoreRef) -> dict[str, tuple[float, float]]:
    falls = LayerStore.open(patched).matrix(ONLY, "falls")
    return {each.name: mean_with_error(row) for each, row in zip(scored, falls, strict=False)}
