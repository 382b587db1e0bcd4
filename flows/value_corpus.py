"""The flow `value-corpus`: from documents and queries to a valuation, a report and an MLflow run."""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.cancelling import unless_cancelled
from flows.config import CorpusRunConfig, ValueConfig
from flows.events import emit_finished, emit_moved, published_shares
from flows.fit_curvature import Prepared, fit_curvature, prepared_stores, store_folder
from flows.index_corpus import index_corpus
from flows.options import command_line
from flows.runs import announce, run_name, run_title
from flows.turns import in_turn
from storage.locations import check_writable
from storage.ref import StoreRef
from tasks.coalitions.parts import GameParts
from tasks.coalitions.task import average_values, value_sources
from tasks.corpus.task import prepare_queries
from tasks.curvature.task import fit_query_factors, fit_source_sums
from tasks.gradients.config import GradientsConfig
from tasks.gradients.task import index_gradients
from tasks.model.loading import load
from tasks.progress import run_logger
from tasks.report.config import TrackingConfig
from tasks.report.machine import MachineSamples
from tasks.report.summary import inert, markdown_table
from tasks.report.task import NotLoggedError, log_valuation, publish_valuation
from tasks.report.tracking import LoggedRun
from tasks.report.valuation import ValuationParts, valuation_summary
from tasks.scoring.config import ScoringConfig
from tasks.scoring.task import score_corpus
from tasks.visible import without_password

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


@flow(
    name="value-corpus",
    flow_run_name=run_name,
    description="Values every document and source of a corpus for some queries.",
)
def value_corpus(config: ValueConfig) -> dict[str, Any] | State[Any]:
    """Find or build gradients and curvature, score, value the sources, publish and log.

    Args:
        config: everything.

    Returns:
        `results` (folder), `scores` and `values` (StoreRef as JSON), `mlflow_run_id`, `mlflow_url` (None where MLflow
        did not take it); `skipped` alone, the reason, where another run was under way and `overlap` is `skip`.
    """
    announce(config)
    results = str(Path(config.results).absolute())
    check_writable(Path(results), "--results")
    config = config.settled(load(config.model).n_classes is not None)
    store = store_folder(config)
    return unless_cancelled(lambda: in_turn(store, config, lambda: _valued(config, store, results)))


@dataclass(frozen=True)
class _Made:
    """What valuations of the same corpus share, and the queries."""

    prepared: Prepared
    queries: StoreRef
    curvature: StoreRef | None
    gradients: StoreRef


def _made(config: ValueConfig, store: str, seconds: _Timings) -> _Made:
    narrowed = _narrowed(config)
    with seconds.step("prepare"):
        prepared = prepared_stores(config)
        queries = prepare_queries(store, config.model, config.queries)
    # With `prepared`, which says that the turn is taken, neither is skipped.
    with seconds.step("fit"):
        curvature = cast(StoreRef | None, fit_curvature(narrowed, prepared))
    with seconds.step("index"):
        gradients = cast(StoreRef, index_corpus(narrowed, prepared))
    return _Made(prepared, queries, curvature, gradients)


def _valued(config: ValueConfig, store: str, results: str) -> dict[str, Any] | State[Any]:
    seconds = _Timings()
    made = in_turn(store, _narrowed(config), lambda: _made(config, store, seconds))
    if isinstance(made, State):
        return made
    prepared, queries, curvature, gradients = made.prepared, made.queries, made.curvature, made.gradients
    with seconds.step("queries"):
        query_gradients = _query_gradients(config, store, made)
    with seconds.step("score"):
        all_scores = _all_scores(config, store, made, query_gradients)
    with seconds.step("value"):
        values, *further = _all_values(config, store, made, query_gradients, all_scores)
        if config.sources.projection_seeds > 1:
            values, *further = _over_projections(config, store, [values, *further])
    scores = all_scores[0]
    parts = ValuationParts(
        title=run_title(config.model.name, config.corpus.files),
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
    _artifact(results, parts, logged, problem)
    emit_finished(results, parts.title, logged)
    outcome = {
        "results": results,
        "scores": parts.scores.model_dump(),
        "values": parts.values.model_dump(),
        "mlflow_run_id": logged.run_id if logged else None,
        "mlflow_url": logged.url if logged else None,
    }
    return outcome if logged else Completed(name="Not logged", message=problem, data=outcome)


def _query_gradients(config: ValueConfig, store: str, made: _Made) -> StoreRef:
    precise = GradientsConfig(dtype="float32", batch_tokens=config.gradients.batch_tokens)
    return index_gradients(store, config.model, made.queries, made.prepared.bases, precise, what="the queries")


def _all_values(
    config: ValueConfig, store: str, made: _Made, query_gradients: StoreRef, all_scores: list[StoreRef]
) -> list[StoreRef]:
    """Values of the sources for each grouping."""
    return [
        value_sources(
            store, scores, config.sources, _game_parts(config, made, query_gradients, grouping), config.cluster
        )
        for scores, grouping in zip(all_scores, config.sources.by, strict=True)
    ]


def _over_projections(config: ValueConfig, store: str, values: list[StoreRef]) -> list[StoreRef]:
    """Values for each grouping as the mean over projections of other seeds, too."""
    by_seed = [values]
    for number in range(1, config.sources.projection_seeds):
        projection = config.projection.model_copy(update={"seed": config.projection.seed + number})
        scoring = _sums_only(config.scoring)
        seeded = config.model_copy(update={"projection": projection, "scoring": scoring})
        made = _made(seeded, store, _Timings())
        query_gradients = _query_gradients(seeded, store, made)
        all_scores = _all_scores(seeded, store, made, query_gradients)
        by_seed.append(_all_values(seeded, store, made, query_gradients, all_scores))
    return [average_values(store, list(each), config.sources.confidence) for each in zip(*by_seed, strict=True)]


def _all_scores(config: ValueConfig, store: str, made: _Made, query_gradients: StoreRef) -> list[StoreRef]:
    """A scoring pass for each grouping of the sources."""
    return [
        score_corpus(
            store,
            made.prepared.corpus,
            made.gradients,
            made.queries,
            query_gradients,
            made.curvature,
            config.curvature.damping,
            config.scoring if number == 0 else _sums_only(config.scoring),
            config.cluster,
            grouping,
        )
        for number, grouping in enumerate(config.sources.by)
    ]


def _game_parts(config: ValueConfig, made: _Made, query_gradients: StoreRef, grouping: str) -> GameParts | None:
    """What a game other than the additive one needs, made where it is not there yet."""
    if config.sources.game == "additive":
        return None
    store, curvature, prepared = store_folder(config), config.curvature, made.prepared
    parts = GameParts(
        model=config.model,
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
    if config.sources.game == "retrain":
        return parts.model_copy(update={"training": config.training})
    sums = fit_source_sums(
        store,
        config.model,
        prepared.corpus,
        prepared.bases,
        made.gradients,
        curvature,
        config.gradients.batch_tokens,
        grouping,
        config.sources.document_groups,
    )
    factors = fit_query_factors(store, config.model, made.queries, prepared.bases, curvature)
    return parts.model_copy(update={"sums": sums, "factors": factors})


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
    return without_password(url) if url and url.startswith("http") else None


def _artifact(results: str, parts: ValuationParts, logged: LoggedRun | None, problem: str) -> None:
    """The headline in Prefect: the sources' table and where everything is."""
    run = problem
    if logged is not None:
        run = f"[{logged.run_id}]({logged.url})" if logged.url else f"`{logged.run_id}`"
    sources = markdown_table(valuation_summary(parts).sources, ARTIFACT_ROWS)
    create_markdown_artifact(
        key="sources",
        markdown=f"{inert(parts.title)}\n\n{sources}\n\nMLflow run: {run}\n\nResults: {inert(results)}\n",
        description="What each source is worth",
    )
