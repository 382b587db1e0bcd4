"""What a valuation's runs in MLflow hold."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LoggedRun", "MachineSample", "TrackedStep", "TrackedValuation", "metric_name"]

# A name that looks as if it had been marked is marked, too: no source can take the name of another.
MARKED = re.compile(r"_[0-9a-f]{12}$")


@dataclass(frozen=True)
class TrackedStep:
    """A part of a valuation with a run of its own: its parameters, counts, start (ms since 1970) and seconds."""

    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    started: int
    seconds: float


@dataclass(frozen=True)
class MachineSample:
    """What the machine did at a time (ms since 1970), by MLflow's names of system metrics."""

    time: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrackedValuation:
    """What is logged.

    Args:
        fingerprint: of the valuation: one has one run.
        name: of the run.
        series: of valuations it belongs to.
        made, started: in milliseconds since 1970.
        params: flat parameters.
        values: value and share of each source, also points of the series.
        metrics: others, by name.
        datasets: context → (name, folder, fingerprint).
        tags: of the run.
        note: Markdown, shown on top of the run.
        files: artifacts.
        folders: of artifacts, each under its own name.
        tables: artifact name → columns.
        steps: with runs of their own.
        machine: samples, oldest first.
        kind: valuation or audit.
    """

    fingerprint: str
    name: str
    series: str
    made: int
    started: int
    params: Mapping[str, str]
    values: Mapping[str, float]
    metrics: Mapping[str, float]
    datasets: Mapping[str, tuple[str, str, str]]
    tags: Mapping[str, str]
    note: str
    files: tuple[Path, ...]
    tables: Mapping[str, dict[str, list[Any]]]
    folders: tuple[Path, ...] = ()
    steps: tuple[TrackedStep, ...] = ()
    machine: tuple[MachineSample, ...] = ()
    kind: str = "valuation"

    @property
    def day(self) -> int:
        """Days since 1970: the step of its metrics."""
        return self.made // 86_400_000


def metric_name(text: str) -> str:
    """Text as MLflow accepts it in a metric's name; what had to be changed gets a mark that keeps names apart."""
    name = re.sub(r"[^\w\-. ]", "_", text, flags=re.ASCII).strip(". ")[:200]
    if name == text and not MARKED.search(text):
        return name
    return f"{name}_{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:12]}"


def run_page(experiment_id: str, run_id: str) -> str:
    """Of a server: without the workflow type MLflow opens its empty GenAI side."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


@dataclass(frozen=True)
class LoggedRun:
    """Where the run is: ids, and its page where a server shows it."""

    run_id: str
    experiment_id: str
    tracking_uri: str
    series_run_id: str | None = None

    @property
    def url(self) -> str | None:
        if not self.tracking_uri.startswith(("http://", "https://")):
            return None
        return f"{self.tracking_uri.rstrip('/')}/{run_page(self.experiment_id, self.run_id)}"
