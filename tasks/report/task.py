"""Prefect tasks that publish a valuation: the results folder, then the MLflow run."""

import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from prefect import task
from pydantic import BaseModel, ConfigDict

from storage.coalitions import CoalitionStore
from storage.corpus import CorpusStore
from storage.errors import DataworthError
from storage.gradients import GradientStore
from storage.manifest import replace_file, staging_folder
from storage.ref import StoreRef
from storage.schema import ALL_QUERIES, VALUES
from storage.scores import ScoreStore
from tasks.coalitions.config import PayoutConfig
from tasks.coalitions.published import published
from tasks.progress import run_logger
from tasks.report.config import TrackingConfig
from tasks.report.figures import drawn_figures
from tasks.report.html import report_html
from tasks.report.losses import query_losses
from tasks.report.numbers import percent
from tasks.report.parameters import flat
from tasks.report.summary import Summary, markdown_table, strongest_overlaps, summary
from tasks.report.tables import safe_csv
from tasks.report.tracking import LoggedRun, TrackedValuation, log_run, metric_name
from tasks.retries import RETRIES, RETRY_DELAYS, may_help

__all__ = ["ValuationParts", "log_valuation", "publish_valuation", "valuation_summary"]

PACKAGES = ("dataworth", "torch", "transformers", "numpy", "zarr", "dask", "prefect", "mlflow")

# MLflow holds 8,000 characters of a description: the largest sources, each at most 200.
NOTE_ROWS = 25

MOST_PAIRS = 10

# Seconds; a server that takes requests and answers none would hold the run for good.
LONGEST_LOGGING = 1800


class ValuationParts(BaseModel):
    """Everything one valuation was made from.

    Args:
        title: of the report and the MLflow run.
        parameters: the whole configuration, as JSON.
        corpus, queries, gradients, scores, values: the stores.
        further_values: of the same sources grouped in other ways.
        payout: from values to payouts, and what is published of small sources.
        curvature: None for `none`.
        model_name: as given.
        model_fingerprint: of the weights.
        query_gradients: of the queries, whose losses they hold.
        command: that makes the valuation again, and the folder to run it in.
        timings: step → seconds.
        prefect_run: id of the flow run.
        prefect_url: its page, where a server shows it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    title: str
    parameters: dict[str, Any]
    corpus: StoreRef
    queries: StoreRef
    gradients: StoreRef
    curvature: StoreRef | None
    scores: StoreRef
    values: StoreRef
    further_values: tuple[StoreRef, ...] = ()
    payout: PayoutConfig = PayoutConfig()
    model_name: str
    model_fingerprint: str
    query_gradients: StoreRef
    command: str
    timings: dict[str, float]
    prefect_run: str
    prefect_url: str | None


def valuation_summary(parts: ValuationParts) -> Summary:
    """A valuation as a person reads it."""
    corpus = CorpusStore.open(parts.corpus)
    settings = flat(parts.parameters)
    facts = {
        "model": f"{parts.model_name} ({parts.model_fingerprint})",
        "corpus": f"{corpus.n_documents:,} documents, {corpus.n_examples:,} windows, {corpus.n_tokens:,} tokens "
        f"({parts.corpus.fingerprint})",
        "store": parts.gradients.location,
        "Prefect flow run": parts.prefect_run,
        **{key: value for key, value in settings.items() if not key.startswith(("model.name", "store"))},
        **{f"game: {name}": _said(value) for name, value in _notes(parts).items()},
        **{f"seconds: {step}": f"{seconds:.1f}" for step, seconds in parts.timings.items()},
        **{f"version: {name}": number for name, number in _versions().items()},
    }
    queries = CorpusStore.open(parts.queries)
    losses = query_losses(queries, GradientStore.open(parts.query_gradients))
    found = summary(queries, ScoreStore.open(parts.scores), _values(parts), facts, losses)
    overlap = CoalitionStore.open(parts.values).overlap
    names = [row["source"] for row in found.sources]
    pairs = None if overlap is None else strongest_overlaps(overlap.to_pandas(), names, MOST_PAIRS)
    return replace(found, notes=_notes(parts), overlaps=pairs, command=parts.command)


def _notes(parts: ValuationParts) -> dict[str, Any]:
    """What is to be known beside the values: the worth of everybody and of nobody, damping, checks."""
    found: dict[str, Any] = CoalitionStore.open(parts.values).attributes.get("notes", {})
    return found


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _values(parts: ValuationParts) -> pd.DataFrame:
    """What is published of the values of every grouping and level: see `published`."""
    refs = (parts.values, *parts.further_values)
    return published(pa.concat_tables([CoalitionStore.open(ref).values for ref in refs]).to_pandas(), parts.payout)


def _grouping(values: StoreRef) -> str:
    """Who is valued: `source`, `publisher>section`."""
    return str(CoalitionStore.open(values).values.column("grouping")[0].as_py())


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@task(
    name="publish-valuation",
    task_run_name="write {results}",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=may_help,
)
def publish_valuation(results: str, parts: ValuationParts, confidence: float) -> None:
    """Write everything a valuation leaves; `valuation.json`, which declares it whole, comes last.

    Files are made in a folder beside and moved into place, so that nothing half-written is ever seen.
    """
    folder = Path(results)
    with staging_folder(folder) as staging:
        values = _values(parts)[VALUES.names]
        values.to_parquet(staging / "sources.parquet", index=False)
        (staging / "sources.csv").write_text(safe_csv(values), encoding="utf-8")
        scores = ScoreStore.open(parts.scores)
        passages = scores.passages.to_pandas()
        passages[passages["rank"] > 0].to_parquet(staging / "documents.parquet", index=False)
        if scores.layer_scores is not None:
            by_layer = scores.layer_scores.to_pandas()
            by_layer[by_layer["rank"] > 0].to_parquet(staging / "layers.parquet", index=False)
        gathered = valuation_summary(parts)
        run_logger().info("clipped mass, all queries together: %s", percent(gathered.clipped) or "unknown")
        valued = CoalitionStore.open(parts.values)
        overlap, of_documents = valued.overlap, valued.documents
        if of_documents is not None:
            of_documents.to_pandas().to_parquet(staging / "document_values.parquet", index=False)
        if overlap is not None:
            overlap.to_pandas().to_parquet(staging / "overlap.parquet", index=False)
        _draw(staging / "figures", values, scores, None if overlap is None else overlap.to_pandas())
        page = report_html(parts.title, gathered, confidence)
        (staging / "report.html").write_text(page, encoding="utf-8")
        if scores.matrix_path is not None:
            scores.matrix_path.copy_to(staging / "scores.zarr")
        (folder / "valuation.json").unlink(missing_ok=True)
        for name in ("scores.zarr", "figures"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("layers.parquet", "overlap.parquet", "document_values.parquet"):
            (folder / name).unlink(missing_ok=True)
        for path in sorted(staging.iterdir()):
            os.replace(path, folder / path.name)
    _write_valuation(folder, parts, gathered, None)


def _draw(folder: Path, values: pd.DataFrame, scores: ScoreStore, overlap: pd.DataFrame | None) -> None:
    """The figures of the first grouping's finest level, as the report has it."""
    key = ["grouping", "level"]
    first = values[(values[key] == values[key].iloc[0]).all(axis=1)]
    folder.mkdir()
    for name, image in drawn_figures(first, scores.total_scores, overlap).items():
        (folder / name).write_bytes(image)


def _write_valuation(folder: Path, parts: ValuationParts, gathered: Summary, logged: LoggedRun | None) -> None:
    content = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": parts.title,
        "fingerprints": {
            "model": parts.model_fingerprint,
            "corpus": parts.corpus.fingerprint,
            "queries": parts.queries.fingerprint,
            "gradients": parts.gradients.fingerprint,
            "curvature": parts.curvature.fingerprint if parts.curvature else None,
            "scores": parts.scores.fingerprint,
            "values": parts.values.fingerprint,
        },
        "stores": {
            "gradients": parts.gradients.location,
            "scores": parts.scores.location,
            "values": {_grouping(ref): ref.location for ref in (parts.values, *parts.further_values)},
        },
        "parameters": parts.parameters,
        "game": _notes(parts),
        "standard_errors": {  # of all queries together
            row["source"]: {cause: _finite(row[f"error_{cause}"]) for cause in ("coalitions", "documents", "queries")}
            for row in gathered.sources
        },
        "versions": _versions(),
        "seconds": parts.timings,
        "prefect": {"flow_run_id": parts.prefect_run, "url": parts.prefect_url},
        "mlflow": None
        if logged is None
        else {
            "run_id": logged.run_id,
            "experiment_id": logged.experiment_id,
            "tracking_uri": logged.tracking_uri,
            "url": logged.url,
        },
    }
    replace_file(folder / "valuation.json", json.dumps(content, indent=2).encode())


def _finite(value: float | None) -> float | None:
    """JSON has no infinity, which an error is where too few coalitions were sampled to tell."""
    return value if value is not None and math.isfinite(value) else None


@task(
    name="log-valuation",
    timeout_seconds=LONGEST_LOGGING,
    task_run_name="log to MLflow",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=may_help,
)
def log_valuation(results: str, parts: ValuationParts, tracking: TrackingConfig) -> dict[str, str | None]:
    """Log a published valuation to MLflow, and write the run's id into `valuation.json`.

    Returns:
        `run_id` and `url` of the MLflow run; the url is None without a server.

    Raises:
        DataworthError: MLflow did not take it; the results folder is whole all the same.
    """
    folder = Path(results)
    gathered = valuation_summary(parts)
    corpus = CorpusStore.open(parts.corpus)
    prefect_link = f"[{parts.prefect_run}]({parts.prefect_url})" if parts.prefect_url else f"`{parts.prefect_run}`"
    table = markdown_table(gathered.sources, NOTE_ROWS)
    tracked = TrackedValuation(
        name=parts.title,
        params=flat(parts.parameters),
        metrics=_metrics(gathered, corpus, parts.timings),
        datasets={
            "corpus": ("corpus", parts.corpus.location, parts.corpus.fingerprint),
            "queries": ("queries", parts.queries.location, parts.queries.fingerprint),
        },
        tags={
            "dataworth.model": parts.model_name,
            "dataworth.model_fingerprint": parts.model_fingerprint,
            "dataworth.store": parts.gradients.location,
            "dataworth.results": str(folder.absolute()),
            "prefect.flow_run_id": parts.prefect_run,
            "prefect.flow_run_url": parts.prefect_url or "",
        },
        note=f"Prefect flow run: {prefect_link}\n\nReport: `report.html`\n\n{table}",
        files=tuple(folder / name for name in ("report.html", "sources.csv", "sources.parquet", "documents.parquet")),
        folders=(folder / "figures",),
        tables={
            "sources": _columns(_values(parts)[VALUES.names], ALL_QUERIES),
            "documents": _columns(ScoreStore.open(parts.scores).passages.to_pandas(), None),
        },
    )
    try:
        logged = log_run(tracking.uri, tracking.experiment, tracked)
    except DataworthError as error:
        raise DataworthError(f"{error}; the valuation itself is kept in {folder}") from error
    _write_valuation(folder, parts, gathered, logged)
    run_logger().info("MLflow run %s", logged.url or f"{logged.run_id} in {logged.tracking_uri}")
    return {"run_id": logged.run_id, "url": logged.url}


def _columns(table: pd.DataFrame, query_id: str | None) -> dict[str, list[Any]]:
    chosen = table if query_id is None else table[table["query_id"] == query_id]
    return {str(name): chosen[name].astype(object).where(chosen[name].notna(), None).to_list() for name in chosen}


def _metrics(gathered: Summary, corpus: CorpusStore, timings: Mapping[str, float]) -> dict[str, float]:
    metrics = {
        "n_documents": float(corpus.n_documents),
        "n_examples": float(corpus.n_examples),
        "n_tokens": float(corpus.n_tokens),
        "n_queries": float(len(gathered.queries)),
        "n_sources": float(len(gathered.sources)),
    }
    for row in gathered.sources:
        name = metric_name(row["source"])
        metrics[f"value/{name}"] = row["value"]
        if row["share"] is not None:
            metrics[f"share/{name}"] = row["share"]
    return metrics | {f"seconds/{metric_name(step)}": seconds for step, seconds in timings.items()}
