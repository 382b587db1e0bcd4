"""Runs of an MLflow experiment that are found again by their tags, one for each, however many processes log it."""

import contextlib
import getpass
from collections.abc import Callable, Mapping
from typing import Any

from mlflow.tracking import MlflowClient

__all__ = ["BATCH", "SingleRuns"]

# The most parameters, tags, that MLflow takes at once.
BATCH = 100


class SingleRuns:
    """Runs of one experiment, no two of which have the same identifying tags.

    Args:
        client: of the server or database.
        experiment_id: of an experiment that is there.
        source: what MLflow shows as the origin of new runs.
    """

    def __init__(self, client: MlflowClient, experiment_id: str, source: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.source = source

    def written(self, tags: Mapping[str, str], name: str, started: int, write: Callable[[str], None]) -> str:
        """The id of the one run with these tags, written.

        Processes that make it at the same moment agree afterwards on the oldest: each removes its own where that is
        another, and writes to the oldest what it wrote to its own. Where one had ended before another began, or
        failed, two are left; the next that succeeds gives the points of the later to the oldest and removes it.

        Args:
            tags: no two runs may have the same.
            name, started: of a run that is not there yet; milliseconds since 1970.
            write: fills the run of an id; done twice it must leave what doing it once leaves.

        Raises:
            MlflowException: MLflow does not answer or refuses; so does whatever `write` raises, with the run marked
                as failed.
        """
        own = None
        runs = self._oldest_first(tags)
        if runs:
            run_id = str(runs[0].info.run_id)
        else:
            run_id = own = str(
                self.client.create_run(
                    self.experiment_id, start_time=started, run_name=name, tags={**tags, **_origin(self.source)}
                ).info.run_id
            )
        while True:
            try:
                write(run_id)
            except BaseException:
                with contextlib.suppress(Exception):
                    self.client.set_terminated(run_id, "FAILED")
                raise
            runs = self._oldest_first(tags)
            if not runs or runs[0].info.run_id == run_id:
                break
            if own == run_id:
                self._remove(run_id)
            run_id = str(runs[0].info.run_id)
        for run in runs[1:]:
            if run.info.status != "RUNNING":
                self._give_points(run, run_id)
                self._remove(run.info.run_id)
        return run_id

    def _oldest_first(self, tags: Mapping[str, str]) -> list[Any]:
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        runs = self.client.search_runs([self.experiment_id], condition, max_results=1000)
        return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    def _give_points(self, run: Any, to: str) -> None:
        points = [point for name in run.data.metrics for point in self.client.get_metric_history(run.info.run_id, name)]
        for start in range(0, len(points), BATCH):
            self.client.log_batch(to, metrics=points[start : start + BATCH])

    def _remove(self, run_id: str) -> None:
        for run in self._oldest_first({"mlflow.parentRunId": run_id}):
            self.client.delete_run(run.info.run_id)
        self.client.delete_run(run_id)


def _origin(source: str) -> dict[str, str]:
    """Where a run comes from, in the tags that MLflow shows on top."""
    origin = {"mlflow.source.type": "JOB", "mlflow.source.name": source}
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        origin["mlflow.user"] = getpass.getuser()
    return origin
