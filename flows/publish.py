"""A valuation that is there already, logged to MLflow: once it answers again, or to another server."""

from flows.config import PublishConfig
from flows.options import validated
from tasks.report.config import TrackingConfig
from tasks.report.results import read_results
from tasks.report.task import log_results
from tasks.report.tracking import LoggedRun

__all__ = ["publish"]


def publish(config: PublishConfig) -> LoggedRun:
    """Log a results folder; nothing but the folder is read.

    Raises:
        InputError: it holds no finished valuation, or one of an older version.
        NotLoggedError: MLflow does not take it.
    """
    recorded = read_results(config.results).parameters.get("tracking", {})
    given = config.tracking.model_dump(exclude_unset=True)
    known = {name: value for name, value in recorded.items() if name in TrackingConfig.model_fields}
    return log_results(config.results, validated(TrackingConfig, {**known, **given}))
