"""The flow `value-corpus`: from documents and queries to a valuation, a report and an MLflow run."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from dataworth.command.options import command_here
from dataworth.config import ValueConfig
from dataworth.fit_curvature import store_folder
from dataworth.lifecycle.cancelling import unless_cancelled
from dataworth.lifecycle.events import emit_finished, emit_moved, published_shares
from dataworth.lifecycle.headline import show_headline
from dataworth.lifecycle.permissions import check_permitted
from dataworth.lifecycle.runs import announce, run_name, run_title
from dataworth.lifecycle.turns import in_turn, run_turn
from dataworth.one_checkpoint import Checkpoint, Timings, sums_only, valued_checkpoint
from dataworth.serving.local_server import has_pages
from dataworth.storage.errors import InputError
from dataworth.storage.locations import check_writable
from dataworth.storage.ref import StoreRef
from dataworth.tasks.coalitions.task import average_values
from dataworth.tasks.model.alike import refuse_other_layers, refuse_other_tokenizers, refuse_same_weights
from dataworth.tasks.model.loading import load
from dataworth.tasks.progress import run_logger
from dataworth.tasks.report.config import TrackingConfig
from dataworth.tasks.report.markdown import markdown_sources
from dataworth.tasks.report.results.valuation import CheckpointParts, ValuationParts, valuation_summary
from dataworth.tasks.report.steps import NotLoggedError
from dataworth.tasks.report.task import log_valuation, publish_valuation
from dataworth.tasks.scoring.task import average_scores
from dataworth.tasks.visible import without_password

__all__ = ["value_corpus"]

ARTIFACT_ROWS = 200


@flow(
    name="value-corpus",
    flow_run_name=run_name,
    description="Values every document and source of a corpus for some queries.",
)
def value_corpus(config: ValueConfig) -> dict[str, Any] | State[Any]:
    """Find or build gradients and curvature, score, value the sources, publish and log.

    Several checkpoints are valued one after another, and their scores and values averaged.

    Args:
        config: everything.

    Returns:
        `results` (folder), `scores` and `values` (StoreRef as JSON), `mlflow_run_id`, `mlflow_url` (None where MLflow
        did not take it); `skipped` alone, the reason, where another run was under way and `overlap` is `skip`.
    """
    announce(config)
    check_permitted(config)
    results = str(Path(config.results).absolute())
    check_writable(Path(results), "--results")
    _refuse_unlike(config)
    config = config.settled(load(config.model.checkpoints[0]).n_classes is not None)
    store = store_folder(config)
    turn = run_turn(store, config)
    return unless_cancelled(lambda: in_turn(turn, config.overlap, lambda: _valued(config, store, results)))


def _refuse_unlike(config: ValueConfig) -> None:
    """Checkpoints that cannot be averaged, before any work is done."""
    checkpoints = config.model.checkpoints
    refuse_other_tokenizers(checkpoints)
    if config.scoring.by_layer:
        refuse_other_layers(checkpoints)
    refuse_same_weights(checkpoints)


def _valued(config: ValueConfig, store: str, results: str) -> dict[str, Any] | State[Any]:
    seconds = Timings()
    found: list[Checkpoint] = []
    for one in _by_checkpoint(config):
        valued = valued_checkpoint(one, store, found[0].queries if found else None, seconds)
        if isinstance(valued, State):
            return valued
        found.append(valued)
    scores, values = found[0].scores, found[0].values
    if len(found) > 1:
        with seconds.step("average"):
            scores, values = _averaged(config, store, found)
    parts = _parts(config, store, found, scores[0], values, seconds)
    if seconds.machine.missing:
        run_logger().warning(seconds.machine.missing)
    before = published_shares(results)
    publish_valuation(results, parts, config.sources.confidence)
    emit_moved(results, parts.title, before, published_shares(results), config.events.share_moved)
    return _logged(results, parts, config.tracking)


def _by_checkpoint(config: ValueConfig) -> list[ValueConfig]:
    """The same valuation for each checkpoint; of several, every score is kept until they are averaged."""
    if len(config.model.name) == 1:
        return [config]
    scoring = config.scoring.model_copy(update={"save_matrix": True})
    return config.model_copy(update={"scoring": scoring}).by_checkpoint


def _averaged(config: ValueConfig, store: str, found: list[Checkpoint]) -> tuple[list[StoreRef], list[StoreRef]]:
    """Scores and values, the means over the checkpoints, of each grouping of the sources."""
    first = found[0]
    if any(each.corpus != first.corpus for each in found):
        raise InputError("--corpus: changed while one checkpoint after another was valued; run again")
    passes, damping = [each.scored for each in found], config.curvature.damping
    all_scores: list[StoreRef] = []
    all_values: list[StoreRef] = []
    for number, grouping in enumerate(config.sources.by):
        scoring = config.scoring if number == 0 else sums_only(config.scoring)
        scores = average_scores(store, first.corpus, first.queries, passes, damping, scoring, grouping)
        tables = [each.values[number] for each in found]
        all_scores.append(scores)
        all_values.append(average_values(store, tables, config.sources.confidence, "checkpoint", scores))
    return all_scores, all_values


def _parts(
    config: ValueConfig, store: str, found: list[Checkpoint], scores: StoreRef, values: list[StoreRef], seconds: Timings
) -> ValuationParts:
    """Everything the valuation was made from; stores of a single checkpoint are the first's."""
    first = found[0]
    own, *further = values
    checkpoints = tuple(
        CheckpointParts(
            model_name=each.model_name,
            model_fingerprint=each.model_fingerprint,
            gradients=each.gradients,
            query_gradients=each.query_gradients,
            curvature=each.curvature,
            scores=each.scores[0],
            values=each.values[0],
        )
        for each in found
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
        model_name=", ".join(each.model_name for each in checkpoints),
        model_fingerprint=", ".join(each.model_fingerprint for each in checkpoints),
        query_gradients=first.query_gradients,
        checkpoints=checkpoints if len(found) > 1 else (),
        command=command_here("value", config.model_copy(update={"store": store})),
        timings=dict(seconds),
        started=seconds.started,
        machine=tuple(seconds.machine.rows),
        prefect_run=str(flow_run.id),
        prefect_url=_page(flow_run.ui_url),
    )


def _logged(results: str, parts: ValuationParts, tracking: TrackingConfig) -> dict[str, Any] | State[Any]:
    """Log the valuation; where MLflow does not take it, the flow run is completed under a name that says so."""
    logged, problem = None, ""
    try:
        logged = log_valuation(results, tracking)
    except NotLoggedError as error:
        problem = str(error)
        run_logger().warning(problem)
    sources = markdown_sources(valuation_summary(parts).sources, ARTIFACT_ROWS)
    show_headline("sources", "What each source is worth", parts.title, sources, results, logged, problem)
    emit_finished(results, parts.title, logged)
    outcome = {
        "results": results,
        "scores": parts.scores.model_dump(),
        "values": parts.values.model_dump(),
        "mlflow_run_id": logged.run_id if logged else None,
        "mlflow_url": logged.url if logged else None,
    }
    return outcome if logged else Completed(name="Not logged", message=problem, data=outcome)


def _page(url: str | None) -> str | None:
    """The flow run's page; the embedded server has none, and Prefect then gives "None/…"."""
    return without_password(url) if url and url.startswith("http") and has_pages() else None
