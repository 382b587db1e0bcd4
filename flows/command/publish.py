"""Log an existing valuation or audit to MLflow: when the server answers again, or to another server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataworth.command.options import validated
from dataworth.config import PublishConfig
from dataworth.storage.errors import InputError
from dataworth.tasks.report.config import TrackingConfig
from dataworth.tasks.report.mlflow.steps import log_audited, log_results
from dataworth.tasks.report.page.audit import read_audit
from dataworth.tasks.report.results.folder import read_results
from dataworth.tasks.report.runs import LoggedRun

__all__ = ["publish"]


def publish(config: PublishConfig) -> LoggedRun:
    """Log a results folder; nothing but the folder is read.

    Raises:
        InputError: it holds neither a finished valuation nor an audit, or one of an older version.
        NotLoggedError: MLflow does not take it.
    """
    audit = Path(config.results) / "audit.json"
    if audit.is_file() and not (Path(config.results) / "valuation.json").is_file():
        return log_audited(config.results, _tracking(config, read_audit(audit.parent).parameters))
    results = read_results(config.results)
    report = Path(config.results) / "report.html"
    if not report.is_file():
        raise InputError(f"{report}: is gone; run `dataworth value` again")
    return log_results(config.results, _tracking(config, results.parameters))


def _tracking(config: PublishConfig, parameters: Mapping[str, Any]) -> TrackingConfig:
    """As the run had it, but for what is given now."""
    recorded = parameters.get("tracking", {})
    given = config.tracking.model_dump(exclude_unset=True)
    known = {name: value for name, value in recorded.items() if name in TrackingConfig.model_fields}
    return validated(TrackingConfig, {**known, **given})
