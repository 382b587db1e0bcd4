"""The flow `audit-valuation`: how far scores can be trusted on a model, method by method, against training again."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from dataworth.command.options import command_here
from dataworth.config import AuditRunConfig
from dataworth.lifecycle.cancelling import unless_cancelled
from dataworth.lifecycle.ending import completed
from dataworth.lifecycle.headline import show_headline
from dataworth.lifecycle.permissions import check_permitted
from dataworth.lifecycle.runs import announce
from dataworth.lifecycle.turns import in_turn, results_turn
from dataworth.problems import problem_place
from dataworth.storage.locations import check_writable, default_store, location_of
from dataworth.storage.ref import StoreRef
from dataworth.tasks.attribution.methods import lacking
from dataworth.tasks.counterfactual.choice import families
from dataworth.tasks.counterfactual.designs import followed_queries
from dataworth.tasks.counterfactual.parts import Chosen, MethodRun, Scored
from dataworth.tasks.counterfactual.problem import Problem, ProblemPlace, ReplayableProblem
from dataworth.tasks.counterfactual.task import (
    attribute,
    choose,
    evaluate,
    patch_tails,
    sweep,
    train_subsets,
    train_without_best,
    train_without_sources,
)
from dataworth.tasks.model.loading import fingerprint_of
from dataworth.tasks.progress import run_logger
from dataworth.tasks.report.markdown import inert, markdown_table
from dataworth.tasks.report.mlflow.steps import NotLoggedError
from dataworth.tasks.report.page.audit import Audit, audit_table
from dataworth.tasks.report.results.valuation import versions
from dataworth.tasks.report.task import log_audit, publish_audit

__all__ = ["audit_valuation"]

CONTROLS = {"randomised": "randomised model", "shuffled": "shuffled labels"}


@flow(
    name="audit-valuation",
    flow_run_name=lambda: _run_name(),
    description="Trains a model again on subsets of its documents, and holds every method of valuation against that.",
)
def audit_valuation(config: AuditRunConfig) -> dict[str, Any] | State[Any]:
    """Train again, score by every method, and say how far each can be trusted.

    Returns:
        `results`, `mlflow_run_id`, `mlflow_url`; `skipped` alone, the reason, where another audit into the same folder
        was under way and `overlap` is `skip`.
    """
    announce()
    check_permitted(config)
    results = Path(config.results).absolute()
    check_writable(location_of(str(results)), "--results")
    store = location_of(config.store or default_store()).absolute()
    check_writable(store, "--store")
    turn = results_turn(str(store), str(results))
    return unless_cancelled(lambda: in_turn(turn, config.overlap, lambda: _audited(config, str(store), str(results))))


def _run_name() -> str:
    config = flow_run.parameters.get("config")
    audit = config.audit.problem if isinstance(config, AuditRunConfig) else None
    return f"audit of {audit or 'a model'}"


def _audited(config: AuditRunConfig, store: str, results: str) -> dict[str, Any] | State[Any]:
    started = int(time.time() * 1000)
    audit, cluster = config.audit, config.cluster
    place = problem_place(config, store)
    problem = place.opened()
    runs, notes = _runs(config, problem)
    # Trainings first: they take longest, and whoever stops the audit keeps each of them.
    subsets = train_subsets(store, place, audit, cluster)
    sources = train_without_sources(store, place, audit, cluster) if audit.leave_one_source_out else None
    scored = [_scored(config, store, place, name, run) for name, run in runs]
    chosen = _chosen(config, store, place, problem, subsets) if audit.tune else None
    if chosen is not None:
        run = MethodRun(method="configured", projection=chosen.projection, curvature=chosen.curvature, seed=audit.seed)
        scored.insert(1, _scored(config, store, place, "tuned", run))
    methods = [each for each in scored if not each.run.control]
    # What a sweep looked at is not reported on.
    reported = range(problem.queries.n_examples) if chosen is None else chosen.queries
    removed: dict[str, StoreRef] = {}
    followed = followed_queries(reported, audit.removal_queries)
    if audit.removal:
        removed = {
            each.name: train_without_best(store, place, audit, cluster, each.name, each.scores, followed)
            for each in methods
            if each.name in audit.removal_methods
        }
    patched = None
    if audit.patch:
        stepped = followed_queries(reported, audit.patch_queries)
        patched = patch_tails(store, place, {each.name: each.scores for each in methods}, audit, stepped)
    findings = evaluate(place, [*methods, *_controls(scored)], subsets, sources, removed, followed, patched, chosen)
    made = Audit(
        title=problem.title,
        made=int(time.time() * 1000),
        started=started,
        parameters=config.model_dump(mode="json"),
        findings=findings.model_dump(),
        notes=notes,
        trials=[] if chosen is None else chosen.trials,
        tuned=None if chosen is None else _tuned(chosen),
        command=command_here("audit", config),
        fingerprints=_fingerprints(problem, scored),
        versions=versions(),
    )
    publish_audit(results, made)
    return _logged(results, made, config)


def _runs(config: AuditRunConfig, problem: Problem) -> tuple[list[tuple[str, MethodRun]], list[str]]:
    """Methods and controls that can be run, by name, and why others are left out."""
    audit = config.audit
    common = {"projection": config.projection, "curvature": config.curvature, "seed": audit.seed}
    runs, notes = [], []
    for name in audit.methods:
        why_not = _unusable(name, config, problem)
        if why_not:
            notes.append(f"{name} is left out: {why_not}.")
            run_logger().warning(notes[-1])
        else:
            runs.append((name, MethodRun(method=name, **common)))
    if audit.controls:
        runs += [
            (f"{runs[0][0]}, {said}", MethodRun(method=runs[0][1].method, control=control, **common))
            for control, said in CONTROLS.items()
        ]
    return runs, notes


def _unusable(name: str, config: AuditRunConfig, problem: Problem) -> str:
    """Why a method cannot be used on a problem; nothing where it can."""
    if name == "bm25" and problem.texts is None:
        return "it compares texts, which this problem has none of"
    has_recipe = isinstance(problem, ReplayableProblem)
    return lacking(name, problem.weight_decay, config.curvature, has_recipe=has_recipe)


def _scored(config: AuditRunConfig, store: str, place: ProblemPlace, name: str, run: MethodRun) -> Scored:
    return Scored(name=name, run=run, scores=attribute(store, place, run, config.cluster, config.audit.seeds))


def _controls(scored: Sequence[Scored]) -> Iterator[Scored]:
    return (each for each in scored if each.run.control)


def _chosen(config: AuditRunConfig, store: str, place: ProblemPlace, problem: Problem, subsets: StoreRef) -> Chosen:
    models = problem.models()
    sides = [size for layer in models[0].layers for size in (layer.n_inputs, layer.n_outputs)]
    curvature = config.curvature
    if models[0].n_classes is not None and "labels" not in curvature.model_fields_set:
        curvature = curvature.model_copy(update={"labels": "exact"})
    tried = families(config.projection, curvature, problem.weight_decay, sides)
    swept = [(each, sweep(store, place, each.projection, each.curvature, list(each.dampings))) for each in tried]
    return choose(subsets, swept, config.audit)


def _tuned(chosen: Chosen) -> dict[str, Any]:
    """What `dataworth value --config` takes."""
    settings = {"projection": chosen.projection, "curvature": chosen.curvature}
    return {name: each.model_dump(mode="json", exclude_defaults=True) for name, each in settings.items()}


def _fingerprints(problem: Problem, scored: Sequence[Scored]) -> dict[str, str]:
    of_models = {f"model {number}": fingerprint_of(model) for number, model in enumerate(problem.models())}
    return {"problem": problem.fingerprint, **of_models, "scores": scored[0].scores.fingerprint}


def _logged(results: str, made: Audit, config: AuditRunConfig) -> dict[str, Any] | State[Any]:
    """Log the audit; where MLflow does not take it, the flow run is completed under a name that says so."""
    logged, problem = None, ""
    try:
        logged = log_audit(results, config.tracking)
    except NotLoggedError as error:
        problem = str(error)
        run_logger().warning(problem)
    said = "\n\n".join([*map(inert, made.sentences()), markdown_table(*audit_table(made))])
    show_headline("methods", "How far each method can be trusted", made.title, said, results, logged, problem)
    outcome = {
        "results": results,
        "mlflow_run_id": logged.run_id if logged else None,
        "mlflow_url": logged.url if logged else None,
    }
    return outcome if logged else completed("Not logged", problem, outcome)
