"""Steps that publish a valuation: the results folder, then the MLflow run."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml

from dataworth.storage.coalitions import CoalitionStore
from dataworth.storage.durable import move_into_place
from dataworth.storage.errors import DataworthError
from dataworth.storage.manifest import staging_folder
from dataworth.storage.schema import VALUES
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.progress import run_logger
from dataworth.tasks.report.config import TrackingConfig
from dataworth.tasks.report.mlflow.tracked import tracked_valuation
from dataworth.tasks.report.mlflow.tracking import LoggedRun, log_run
from dataworth.tasks.report.numbers import percent
from dataworth.tasks.report.page.audit import Audit, audit_figure, audit_html, read_audit, tracked_audit, write_audit
from dataworth.tasks.report.page.figures import drawn_figures
from dataworth.tasks.report.page.html import report_html
from dataworth.tasks.report.page.tables import safe_csv
from dataworth.tasks.report.record import mlflow_record, record, with_run
from dataworth.tasks.report.results.folder import read_results, write_record
from dataworth.tasks.report.results.valuation import ValuationParts, published_values, valuation_summary

__all__ = [
    "NotLoggedError",
    "log_audit",
    "log_audited",
    "log_results",
    "log_valuation",
    "publish_audit",
    "publish_valuation",
]

REPLACED_FOLDERS = ("scores.zarr", "figures")
REPLACED_FILES = ("layers.parquet", "overlap.parquet", "document_values.parquet", "machine.csv")

# Seconds; a server that takes requests and answers none would hold the run for good.
LONGEST_LOGGING = 1800


class NotLoggedError(DataworthError):
    """MLflow did not take a valuation, which is whole all the same; the message names the command that logs it."""


def publish_valuation(results: str, parts: ValuationParts, confidence: float) -> None:
    """Write everything a valuation leaves; `valuation.json`, which declares it whole, comes last.

    Files are made in a folder beside and moved into place, so that nothing half-written is ever seen.
    """
    folder = Path(results)
    with staging_folder(folder) as staging:
        values = published_values(parts)[VALUES.names]
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
        if parts.machine:
            pd.DataFrame(parts.machine).to_csv(staging / "machine.csv", index=False)
        scores.copy_matrix(staging / "scores.zarr")
        (folder / "valuation.json").unlink(missing_ok=True)
        for name in REPLACED_FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in REPLACED_FILES:
            (folder / name).unlink(missing_ok=True)
        for path in sorted(staging.iterdir()):
            move_into_place(path, folder / path.name)
    write_record(folder, record(parts, gathered))


def _draw(folder: Path, values: pd.DataFrame, scores: ScoreStore, overlap: pd.DataFrame | None) -> None:
    """The figures of the first grouping's finest level, as the report has it."""
    key = ["grouping", "level"]
    first = values[(values[key] == values[key].iloc[0]).all(axis=1)]
    folder.mkdir()
    for name, image in drawn_figures(first, scores.total_scores, overlap).items():
        (folder / name).write_bytes(image)


def log_valuation(results: str, tracking: TrackingConfig) -> LoggedRun:
    """Log a published valuation to MLflow: see `log_results`."""
    logged = log_results(results, tracking)
    run_logger().info("MLflow run %s", logged.url or f"{logged.run_id} in {logged.tracking_uri}")
    return logged


def log_results(results: str, tracking: TrackingConfig) -> LoggedRun:
    """Log a results folder to MLflow, and write the run's id into its `valuation.json`.

    A valuation that MLflow holds already gets no second run: what is missing of its run is added.

    Raises:
        InputError: no finished valuation, or one of an older version.
        NotLoggedError: MLflow did not take it; the results folder is whole all the same.
    """
    found = read_results(results)
    tracked = tracked_valuation(found, tracking.series)
    folder = Path(results).absolute()
    try:
        logged = log_run(tracking.uri, tracking.experiment, tracked)
        write_record(folder, with_run(found.record, logged))
    except (DataworthError, OSError) as error:
        command = f"dataworth publish --results {shlex.quote(str(folder))}"
        raise NotLoggedError(f"{error}; the valuation is kept, and `{command}` logs it later") from error
    return logged


def publish_audit(results: str, audit: Audit) -> None:
    """Write everything an audit leaves; `audit.json`, which declares it whole, comes last."""
    folder = Path(results)
    with staging_folder(folder) as staging:
        audit.table.to_parquet(staging / "methods.parquet", index=False)
        (staging / "methods.csv").write_text(safe_csv(audit.table), encoding="utf-8")
        (staging / "report.html").write_text(audit_html(audit), encoding="utf-8")
        (staging / "figures").mkdir()
        (staging / "figures" / "lds.png").write_bytes(audit_figure(audit))
        if audit.tuned is not None:
            (staging / "tuned.yaml").write_text(yaml.safe_dump(audit.tuned, sort_keys=False), encoding="utf-8")
        for name in ("audit.json", "tuned.yaml"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "figures", ignore_errors=True)
        for path in sorted(staging.iterdir()):
            move_into_place(path, folder / path.name)
    write_audit(folder, audit)


def log_audit(results: str, tracking: TrackingConfig) -> LoggedRun:
    """Log a published audit to MLflow: see `log_audited`."""
    logged = log_audited(results, tracking)
    run_logger().info("MLflow run %s", logged.url or f"{logged.run_id} in {logged.tracking_uri}")
    return logged


def log_audited(results: str, tracking: TrackingConfig) -> LoggedRun:
    """Log the audit of a results folder to MLflow, once, and write the run's id into its `audit.json`.

    Raises:
        InputError: no finished audit, or a damaged one.
        NotLoggedError: MLflow did not take it; the results folder is whole all the same.
    """
    folder = Path(results).absolute()
    audit = read_audit(folder)
    try:
        logged = log_run(tracking.uri, tracking.experiment, tracked_audit(audit, folder, tracking.series))
        write_audit(folder, replace(audit, mlflow=mlflow_record(logged)))
    except (DataworthError, OSError) as error:
        command = f"dataworth publish --results {shlex.quote(str(folder))}"
        raise NotLoggedError(f"{error}; the audit is kept, and `{command}` logs it later") from error
    return logged
