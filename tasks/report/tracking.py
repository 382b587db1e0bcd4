"""A valuation as an MLflow run: parameters, metrics, data sets, tables and the report."""

import contextlib
import getpass
import hashlib
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # made while importing
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from storage.errors import DataworthError
from storage.locations import home
from tasks.visible import without_password

__all__ = ["LoggedRun", "TrackedValuation", "log_run", "metric_name", "tracking_uri"]


@dataclass(frozen=True)
class TrackedValuation:
    """What is logged.

    Args:
        name: of the run.
        params: flat parameters.
        metrics: by name.
        datasets: context → (name, folder, fingerprint).
        tags: of the run.
        note: Markdown, shown on top of the run.
        files: artifacts.
        folders: of artifacts, each under its own name.
        tables: artifact name → columns.
    """

    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    datasets: Mapping[str, tuple[str, str, str]]
    tags: Mapping[str, str]
    note: str
    files: tuple[Path, ...]
    tables: Mapping[str, dict[str, list[Any]]]
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True)
class LoggedRun:
    """Where the run is: ids, and its page where a server shows it."""

    run_id: str
    experiment_id: str
    tracking_uri: str

    @property
    def url(self) -> str | None:
        if not self.tracking_uri.startswith(("http://", "https://")):
            return None
        # Without the workflow type MLflow opens its empty GenAI side.
        page = f"#/experiments/{self.experiment_id}/runs/{self.run_id}?workflowType=machine_learning"
        return f"{self.tracking_uri.rstrip('/')}/{page}"


def tracking_uri(uri: str | None) -> str:
    """The given URI, else $MLFLOW_TRACKING_URI, else SQLite in the home folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"


def metric_name(text: str) -> str:
    """Text as MLflow accepts it in a metric's name; what had to be changed gets a mark that keeps names apart."""
    name = re.sub(r"[^\w\-. ]", "_", text, flags=re.ASCII).strip(". ")[:200]
    return name if name == text else f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def log_run(uri: str | None, experiment: str, valuation: TrackedValuation) -> LoggedRun:
    """Log a valuation as one MLflow run.

    Raises:
        DataworthError: MLflow does not answer or refuses.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    address = tracking_uri(uri)
    if address.startswith("sqlite:///"):
        Path(address.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        client = MlflowClient(tracking_uri=address)
        experiment_id = _experiment(client, address, experiment)
        run = client.create_run(experiment_id, run_name=valuation.name, tags=_origin())
        run_id: str = run.info.run_id
        try:
            _log(client, run_id, address, valuation)
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id, "FINISHED")
    except MlflowException as error:
        raise DataworthError(
            f"MLflow at {without_password(address)} did not take the run ({_reason(error)})"
        ) from error
    return LoggedRun(run_id, experiment_id, without_password(address))


def _reason(error: MlflowException) -> str:
    return without_password((str(error) or type(error).__name__).splitlines()[0])


def _origin() -> dict[str, str]:
    """Where a run comes from, in the tags that MLflow shows on top."""
    origin = {"mlflow.source.type": "JOB", "mlflow.source.name": "dataworth value-corpus"}
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        origin["mlflow.user"] = getpass.getuser()
    return origin


def _experiment(client: MlflowClient, address: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if address.startswith("sqlite:///"):
        location = (Path(address.removeprefix("sqlite:///")).parent / "artifacts" / metric_name(name)).as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def _log(client: MlflowClient, run_id: str, address: str, valuation: TrackedValuation) -> None:
    params = [Param(key, value) for key, value in valuation.params.items()]
    metrics = [Metric(key, value, int(time.time() * 1000), 0) for key, value in valuation.metrics.items()]
    tags = [RunTag(key, value) for key, value in {**valuation.tags, "mlflow.note.content": valuation.note}.items()]
    for start in range(0, max(len(params), len(metrics), len(tags)), 100):
        batch = slice(start, start + 100)
        client.log_batch(run_id, metrics=metrics[batch], params=params[batch], tags=tags[batch])
    for path in valuation.files:
        client.log_artifact(run_id, str(path))
    for folder_path in valuation.folders:
        client.log_artifacts(run_id, str(folder_path), folder_path.name)
    for name, columns in valuation.tables.items():
        client.log_table(run_id, data=columns, artifact_file=f"tables/{name}.json")
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(address)
    try:
        with mlflow.start_run(run_id=run_id, log_system_metrics=False):
            for context, (name, folder, digest) in valuation.datasets.items():
                dataset = MetaDataset(LocalArtifactDatasetSource(folder), name, digest)  # type: ignore[abstract]
                mlflow.log_input(dataset, context=context)
    finally:
        mlflow.set_tracking_uri(previous)
