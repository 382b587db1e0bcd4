"""The steps of the room as Prefect tasks."""

from dataworth.tasks.report import steps
from dataworth.tasks.report.mlflow import steps as logged
from dataworth.tasks.wrapping import as_task

__all__ = ["log_audit", "log_valuation", "publish_audit", "publish_valuation"]

publish_valuation = as_task(steps.publish_valuation, name="publish-valuation", run_name="write {results}")
log_valuation = as_task(
    logged.log_valuation, name="log-valuation", run_name="log to MLflow", timeout_seconds=logged.LONGEST_LOGGING
)
publish_audit = as_task(steps.publish_audit, name="publish-audit", run_name="write {results}")
log_audit = as_task(
    logged.log_audit, name="log-audit", run_name="log to MLflow", timeout_seconds=logged.LONGEST_LOGGING
)
