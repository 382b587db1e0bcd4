"""The flow `value-corpus`: from documents and queries to a valuation, a report and an MLflow run."""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.config import CorpusRunConfig, ValueConfig
from flows.fit_curvature import Prepared, fit_curvature, prepared_stores, store_folder
from flows.index_corpus import index_corpus
from flows.options import command_line
from storage.locations import check_writable
from storage.ref import StoreRef
from tasks.coalitions.task import GameParts, value_sources
from tasks.corpus.task import prepare_queries
from tasks.curvature.task import fit_query_factors, fit_source_sums
from tasks.gradients.config import GradientsConfig
from tasks.gradients.task import index_gradients
from tasks.model.loading import load
from tasks.progress import run_logger
from tasks.report.config import TrackingConfig
from tasks.report.machine import MachineSamples
from tasks.report.summary import markdown_table
from tasks.report.task import NotLoggedError, log_valuation, publish_valuation
from tasks.report.tracking import LoggedRun
from tasks.report.valuation import ValuationParts, valuation_summary
from tasks.scoring.config import ScoringConfig
from tasks.scoring.task import score_corpus

__all__ = ["value_corpus"]

ARTIFACT_ROWS = 200


class _Timings(dict[str, float]):
    """Seconds of each step, when it started, and what the machine did meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.started: dict[str, float] = {}
        self.machine = MachineSamples()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start, self.started[name] = time.monotonic(), time.time()
        with self.machine.watching():
            yield
        self[name] = round(time.monotonic() - start, 3)


@flow(name="value-corpus", description="Values every document and source of a corpus for some queries.")
def value_corpus(config: ValueConfig) -> dict[str, Any]:
    """Find or build gradients and curvature, score, value the sources, publish and log.

    Args:
        config: everything.

    Returns:
        `results` (folder), `scores` and `values` (StoreRef as JSON), `mlflow_run_id`, `mlflow_url`
        (None where MLflow did not take it).
    """
    config = config.with_fields()
    store = store_folder(config)
    results = str(Path(config.results).absolute())
    check_writable(Path(results), "--results")
    seconds = _Timings()
    with seconds.step("prepare"):
        prepared = prepared_stores(config)
        queries = prepare_queries(store, config.model, config.queries)
    with seconds.step("fit"):
        curvature = fit_curvature(_narrowed(config), prepared)
    with seconds.step("index"):
        gradients = index_corpus(_narrowed(config), prepared)
    with seconds.step("queries"):
        precise = GradientsConfig(dtype="float32", batch_tokens=config.gradients.batch_tokens)
        query_gradients = index_gradients(store, config.model, queries, prepared.bases, precise, what="the queries")
    with seconds.step("score"):
        all_scores = [
            score_corpus(
                store,
                prepared.corpus,
                gradients,
                queries,
                query_gradients,
                curvature,
                config.curvature.damping,
                config.scoring if number == 0 else _sums_only(config.scoring),
                config.cluster,
                grouping,
            )
            for number, grouping in enumerate(config.sources.by)
        ]
    scores = all_scores[0]
    with seconds.step("value"):
        values, *further = [
            value_sources(
                store,
                each,
                config.sources,
                _game_parts(config, prepared, gradients, queries, query_gradients, grouping),
                config.cluster,
            )
            for each, grouping in zip(all_scores, config.sources.by, strict=True)
        ]
    parts = ValuationParts(
        title=f"{Path(config.model.name).name} on {', '.join(Path(name).name for name in config.corpus.files)}",
        parameters=config.model_dump(mode="json"),
        corpus=prepared.corpus,
        queries=queries,
        gradients=gradients,
        curvature=curvature,
        scores=scores,
        values=values,
        further_values=tuple(further),
        payout=config.sources.payout,
        model_name=config.model.name,
        model_fingerprint=load(config.model).fingerprint,
        query_gradients=query_gradients,
        command=_command(config.model_copy(update={"store": store})),
        timings=dict(seconds),
        started=seconds.started,
        machine=tuple(seconds.machine.rows),
        prefect_run=str(flow_run.id),
        prefect_url=_page(flow_run.ui_url),
    )
    if seconds.machine.missing:
        run_logger().warning(seconds.machine.missing)
    publish_valuation(results, parts, config.sources.confidence)
    return _logged(results, parts, config.tracking)


def _logged(results: str, parts: ValuationParts, tracking: TrackingConfig) -> Any:
    """Log the valuation; where MLflow does not take it, the flow run is completed under a name that says so."""
    logged, problem = None, ""
    try:
        logged = log_valuation(results, tracking)
    except NotLoggedError as error:
        problem = str(error)
        run_logger().warning(problem)
    _artifact(results, parts, logged, problem)
    outcome = {
        "results": results,
        "scores": parts.scores.model_dump(),
        "values": parts.values.model_dump(),
        "mlflow_run_id": logged.run_id if logged else None,
        "mlflow_url": logged.url if logged else None,
    }
    return outcome if logged else Completed(name="Not logged", message=problem, data=outcome)


def _game_parts(
    config: ValueConfig,
    prepared: Prepared,
    gradients: StoreRef,
    queries: StoreRef,
    query_gradients: StoreRef,
    grouping: str,
) -> GameParts | None:
    """What a game other than the additive one needs, made where it is not there yet."""
    if config.sources.game == "additive":
        return None
    store, curvature = store_folder(config), config.curvature
    return GameParts(
        model=config.model,
        queries=queries,
        query_gradients=query_gradients,
        bases=prepared.bases,
        sums=fit_source_sums(
            store,
            config.model,
            prepared.corpus,
            prepared.bases,
            gradients,
            curvature,
            config.gradients.batch_tokens,
            grouping,
            config.sources.document_groups,
        ),
        factors=fit_query_factors(store, config.model, queries, prepared.bases, curvature),
        damping=curvature.damping,
    )


def _narrowed(config: ValueConfig) -> CorpusRunConfig:
    """The part of a configuration that the other flows take."""
    return CorpusRunConfig.model_validate(config.model_dump(include=set(CorpusRunConfig.model_fields)))


def _sums_only(scoring: ScoringConfig) -> ScoringConfig:
    """What a pass for a further grouping keeps: passages and matrix are those of the first."""
    return scoring.model_copy(update={"top_k": 1, "save_matrix": False, "by_layer": False})


def _command(config: ValueConfig) -> str:
    """That makes the valuation again: relative paths are of the folder it was made in."""
    return f"cd {shlex.quote(str(Path.cwd()))}\n{command_line('value', config)}"


def _page(url: str | None) -> str | None:
    """The flow run's page; the embedded server has none, and Prefect then gives "None/…"."""
    return url if url and url.startswith("http") else None


def _artifact(results: str, parts: ValuationParts, logged: LoggedRun | None, problem: str) -> None:
    """The headline in Prefect: the sources' table and where everything is."""
    run = problem
    if logged is not None:
        run = f"[{logged.run_id}]({logged.url})" if logged.url else f"`{logged.run_id}`"
    sources = markdown_table(valuation_summary(parts).sources, ARTIFACT_ROWS)
    create_markdown_artifact(
        key="sources",
        markdown=f"{sources}\n\nMLflow run: {run}\n\nResults: `{results}`\n",
        description=f"What each source is worth: {parts.title}",
    )
