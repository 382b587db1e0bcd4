"""A valuation in MLflow: its run, a run below it for each step, and a run of its series that draws shares over time.

Logging twice leaves what logging once leaves: runs are found again by their tags, and every point of a metric has
the time and step of the valuation, not of the logging.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping

from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # made while importing
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from dataworth.storage.errors import DataworthError
from dataworth.storage.locations import home
from dataworth.storage.ref import fingerprint
from dataworth.storage.spelling import setting
from dataworth.tasks.report.mlflow.database import database_file, make_database, quieten
from dataworth.tasks.report.mlflow.single_runs import BATCH, SingleRuns
from dataworth.tasks.report.runs import LoggedRun, TrackedStep, TrackedValuation, metric_name, run_page
from dataworth.tasks.visible import without_password

__all__ = ["log_run", "tracking_uri"]

# A server that does not answer is given up after about a minute; MLflow's own patience is 16.
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}

# Which flow makes what is logged, by its kind.
FLOWS = {"valuation": "value-corpus", "audit": "audit-valuation"}

# What MLflow calls a violated constraint of its database.
COLLISION = "BAD_REQUEST"

SERIES_NOTE = """\
Run by run: {name}

Under *Model metrics* every `share/…` (of marginal values `of positive values/…`) and `value/…` (nats a query), or of
audits `lds/…`, is a chart over time. Its steps are days since 1970; choose *Time (wall)* as the x-axis to read dates.
"""


def tracking_uri(uri: str | None) -> str:
    """The given URI, else $MLFLOW_TRACKING_URI, else SQLite in the home folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"


def log_run(uri: str | None, experiment: str | None, valuation: TrackedValuation) -> LoggedRun:
    """Log a valuation; one that is there already gets no second run, but what is missing of its own.

    Args:
        uri: of MLflow; None: see `tracking_uri`.
        experiment: its name; None: that of the series, which then has an experiment of its own.
        valuation: what is logged.

    Raises:
        DataworthError: MLflow does not answer or refuses.
    """
    quieten()
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # each try of a server that is away
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    address = tracking_uri(uri)
    try:
        database = database_file(address)
        if database is not None:
            make_database(database)
        client = MlflowClient(tracking_uri=address)
        experiment_id = _experiment(client, address, experiment or valuation.series)
        runs = SingleRuns(client, experiment_id, f"dataworth {FLOWS[valuation.kind]}")
        series_run_id = runs.written(
            {"dataworth.kind": "series", "dataworth.series_fingerprint": fingerprint(valuation.series)},
            f"series: {valuation.series}"[:250],
            int(1000 * time.time()),
            lambda run_id: _log_series(client, run_id, valuation),
        )
        run_id = runs.written(
            {"dataworth.kind": valuation.kind, f"dataworth.{valuation.kind}": valuation.fingerprint},
            valuation.name,
            valuation.started,
            lambda run_id: _log_valuation(runs, run_id, series_run_id, valuation),
        )
    except Exception as error:  # whatever MLflow, its database's driver or the disk have to say, the valuation is kept
        said = without_password((str(error).splitlines() or [type(error).__name__])[0])
        raise DataworthError(f"MLflow at {without_password(address)} did not take the run ({said})") from error
    return LoggedRun(run_id, runs.experiment_id, without_password(address), series_run_id)


def _experiment(client: MlflowClient, address: str, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = None
        database = database_file(address)
        if database is not None:
            location = (database.absolute().parent / "artifacts" / metric_name(name)).as_uri()
        with contextlib.suppress(MlflowException):  # another process may just have made it
            return str(client.create_experiment(name, artifact_location=location))
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise DataworthError(f"the experiment {name!r} cannot be made")
    if experiment.lifecycle_stage != "active":
        raise DataworthError(
            f"the experiment {name!r} was deleted: restore it or pass {setting('tracking.experiment')}"
        )
    return str(experiment.experiment_id)


def _log_series(client: MlflowClient, run_id: str, valuation: TrackedValuation) -> None:
    tags = {"dataworth.series": valuation.series, "mlflow.note.content": SERIES_NOTE.format(name=valuation.series)}
    _log_batches(client, run_id, _points(valuation.values, valuation), {}, tags)
    client.set_terminated(run_id, "FINISHED")


def _log_valuation(runs: SingleRuns, run_id: str, series_run_id: str, valuation: TrackedValuation) -> None:
    client = runs.client
    listed = [{"path": f"tables/{name}.json", "type": "table"} for name in valuation.tables]
    tags = {
        **valuation.tags,
        "dataworth.series": valuation.series,
        "dataworth.series_run_id": series_run_id,
        "mlflow.note.content": f"Over time: [{_inert(valuation.series)}]"
        f"({run_page(runs.experiment_id, series_run_id)})\n\n{valuation.note}",
        "mlflow.loggedArtifacts": json.dumps(listed),
    }
    metrics = _points({**valuation.metrics, **valuation.values}, valuation)
    for number, sample in enumerate(valuation.machine):
        metrics += [Metric(f"system/{name}", value, sample.time, number) for name, value in sample.metrics.items()]
    _log_batches(client, run_id, metrics, valuation.params, tags)
    for path in valuation.files:
        client.log_artifact(run_id, str(path))
    for folder in valuation.folders:
        client.log_artifacts(run_id, str(folder), folder.name)
    for name, columns in valuation.tables.items():
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        client.log_dict(run_id, {"columns": list(columns), "data": rows}, f"tables/{name}.json")
    _log_datasets(client, run_id, valuation.datasets)
    for step in valuation.steps:
        runs.written(
            {"mlflow.parentRunId": run_id, "dataworth.kind": "step", "dataworth.step": step.name},
            step.name,
            step.started,
            lambda child, step=step: _log_step(client, child, step, valuation),  # type: ignore[misc]
        )
    client.set_terminated(run_id, "FINISHED", valuation.made)


def _log_step(client: MlflowClient, run_id: str, step: TrackedStep, valuation: TrackedValuation) -> None:
    metrics = _points({**step.metrics, "seconds": step.seconds}, valuation)
    _log_batches(client, run_id, metrics, step.params, {"dataworth.series": valuation.series})
    client.set_terminated(run_id, "FINISHED", step.started + int(1000 * step.seconds))


def _inert(text: str) -> str:
    """Text that cannot end a Markdown link nor hold another."""
    return "".join(letter if letter.isalnum() or letter in " -_.,/" else " " for letter in text)


def _points(metrics: Mapping[str, float], valuation: TrackedValuation) -> list[Metric]:
    return [Metric(name, value, valuation.made, valuation.day) for name, value in metrics.items()]


def _log_batches(
    client: MlflowClient, run_id: str, metrics: list[Metric], params: Mapping[str, str], tags: Mapping[str, str]
) -> None:
    every_param = [Param(key, value) for key, value in params.items()]
    every_tag = [RunTag(key, value) for key, value in tags.items()]
    for start in range(0, max(len(metrics), len(every_param), len(every_tag)), BATCH):
        batch = slice(start, start + BATCH)
        client.log_batch(run_id, metrics=metrics[batch], params=every_param[batch], tags=every_tag[batch])


def _log_datasets(client: MlflowClient, run_id: str, datasets: Mapping[str, tuple[str, str, str]]) -> None:
    """MLflow looks for a dataset, then inserts it: where another process did so in between, it refuses.

    Each refusal means that one of the datasets, or its link to the run, is there by now and will be found.
    """
    inputs = []
    for context, (name, folder, digest) in datasets.items():
        dataset = MetaDataset(LocalArtifactDatasetSource(folder), name, digest)  # type: ignore[abstract]
        inputs.append(DatasetInput(dataset._to_mlflow_entity(), [InputTag("mlflow.data.context", context)]))
    for refusals_left in reversed(range(2 * len(inputs) + 1)):
        try:
            client.log_inputs(run_id, inputs)
            return
        except MlflowException as error:
            if error.error_code != COLLISION or not refusals_left:
                raise
