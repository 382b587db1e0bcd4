"""Steps that log a results folder to MLflow."""

import shlex
from dataclasses import replace
from pathlib import Path

from dataworth.storage.errors import DataworthError
from dataworth.tasks.progress import run_logger
from dataworth.tasks.report.config import TrackingConfig
from dataworth.tasks.report.mlflow.tracked import tracked_valuation
from dataworth.tasks.report.mlflow.tracking import log_run
from dataworth.tasks.report.page.audit import read_audit, tracked_audit, write_audit
from dataworth.tasks.report.record import mlflow_record, with_run
from dataworth.tasks.report.results.folder import read_results, write_record
from dataworth.tasks.report.runs import LoggedRun

__all__ = ["LONGEST_LOGGING", "NotLoggedError", "log_audit", "log_audited", "log_results", "log_valuation"]

# Seconds; a server that takes requests and answers none would hold the run for good.
LONGEST_LOGGING = 1800


class NotLoggedError(DataworthError):
    """MLflow did not take a valuation, which is whole all the same; the message names the command that logs it."""


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
    loaded = read_results(results)
    tracked = tracked_valuation(loaded, tracking.series)
    folder = Path(results).absolute()
    try:
        logged = log_run(tracking.uri, tracking.experiment, tracked)
        write_record(folder, with_run(loaded.record, logged))
    except (DataworthError, OSError) as error:
        command = f"dataworth publish --results {shlex.quote(str(folder))}"
        raise NotLoggedError(f"{error}; the valuation is kept, and `{command}` logs it later") from error
    return logged


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
