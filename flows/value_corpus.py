"""The flow `value-corpus`: from documents and queries to a valuation, a report and an MLflow run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from dataworth.config import CorpusRunConfig, ValueConfig
from dataworth.fit_curvature import fit_curvature
from dataworth.index_corpus import index_corpus
from dataworth.lifecycle.cancelling import unless_cancelled
from dataworth.lifecycle.ending import completed
from dataworth.lifecycle.events import emit_finished, emit_moved, published_shares
from dataworth.lifecycle.headline import show_headline
from dataworth.lifecycle.permissions import check_permitted
from dataworth.lifecycle.runs import announce, run_name
from dataworth.lifecycle.turns import in_turn, run_turn
from dataworth.preparing import Prepared, Steps, store_folder
from dataworth.serving.local_server import has_pages
from dataworth.storage.locations import check_writable
from dataworth.storage.ref import StoreRef
from dataworth.tasked import TASKS
from dataworth.tasks.model.loading import load
from dataworth.tasks.progress import run_logger
from dataworth.tasks.report.config import TrackingConfig
from dataworth.tasks.report.markdown import markdown_candidates, markdown_sources
from dataworth.tasks.report.mlflow.steps import NotLoggedError
from dataworth.tasks.report.results.valuation import ValuationParts, valuation_summary
from dataworth.tasks.report.task import log_valuation, publish_valuation
from dataworth.tasks.visible import without_password
from dataworth.valuing import refuse_unlike, valued

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
    refuse_unlike(config)
    config = config.settled(load(config.model.checkpoints[0]).n_classes is not None)
    store = store_folder(config)
    turn = run_turn(store, config)
    return unless_cancelled(lambda: in_turn(turn, config.overlap, lambda: _valued(config, store, results)))


class _Doing(Steps):
    """Tasks of Prefect; fit and index are flows of their own, and runs of the same parameters take turns."""

    def fit(self, config: CorpusRunConfig, prepared: Prepared) -> list[StoreRef]:
        # With `prepared`, which says that the turn is taken, it is not skipped.
        return cast(list[StoreRef], fit_curvature(config, prepared))

    def index(self, config: CorpusRunConfig, prepared: Prepared) -> StoreRef:
        (gradients,) = cast(list[StoreRef], index_corpus(config, prepared))
        return gradients

    def in_turn(self, config: CorpusRunConfig, work: Callable[[], Any]) -> Any:
        done = in_turn(run_turn(store_folder(config), config), config.overlap, work)
        if isinstance(done, State):
            raise _SkippedError(done)
        return done


class _SkippedError(Exception):
    """Another run was under way and `overlap` is `skip`; its first argument is the state to end in."""


DOING = _Doing(**TASKS)


def _valued(config: ValueConfig, store: str, results: str) -> dict[str, Any] | State[Any]:
    try:
        parts = valued(config, store, DOING)
    except _SkippedError as skipped:
        return cast(State[Any], skipped.args[0])
    parts = parts.model_copy(update={"prefect_run": str(flow_run.id), "prefect_url": _page(flow_run.ui_url)})
    before = published_shares(results)
    publish_valuation(results, parts, config.sources.confidence)
    emit_moved(results, parts.title, before, published_shares(results), config.events.share_moved)
    return _logged(results, parts, config.tracking)


def _logged(results: str, parts: ValuationParts, tracking: TrackingConfig) -> dict[str, Any] | State[Any]:
    """Log the valuation; where MLflow does not take it, the flow run is completed under a name that says so."""
    logged, problem = None, ""
    try:
        logged = log_valuation(results, tracking)
    except NotLoggedError as error:
        problem = str(error)
        run_logger().warning(problem)
    said = valuation_summary(parts)
    sources = markdown_sources(said.sources, said.account, ARTIFACT_ROWS)
    if said.candidates is not None:
        sources += f"\n\n{markdown_candidates(said.candidates.sources, said.account, ARTIFACT_ROWS)}"
    show_headline("sources", "What each source is worth", parts.title, sources, results, logged, problem)
    emit_finished(results, parts.title, logged)
    outcome = {
        "results": results,
        "scores": parts.scores.model_dump(),
        "values": parts.values.model_dump(),
        "mlflow_run_id": logged.run_id if logged else None,
        "mlflow_url": logged.url if logged else None,
    }
    return outcome if logged else completed("Not logged", problem, outcome)


def _page(url: str | None) -> str | None:
    """The flow run's page; a server that a flow starts for itself has none, and Prefect then gives "None/…"."""
    return without_password(url) if url and url.startswith("http") and has_pages() else None
