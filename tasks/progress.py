"""What a person sees of long work: a bar in the terminal, a progress artifact in Prefect, a run's logger."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging import LoggerAdapter
from typing import Any
from uuid import UUID

from httpx import TransportError
from prefect.artifacts import create_link_artifact, create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError, PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from tqdm import tqdm

__all__ = ["Progress", "progress", "run_logger", "show_link"]

SECONDS_BETWEEN_UPDATES = 2.0
# Where the server did not answer.
SECONDS_UNTIL_ANOTHER_TRY = 30.0


def run_logger() -> "logging.Logger | LoggerAdapter[Any]":
    """Prefect's logger of the run under way; outside of a run, the project's own."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("dataworth")


class Progress:
    """Counts units of work; see `progress`."""

    def __init__(self, bar: "tqdm[Any]", artifact: UUID | None) -> None:
        self._bar = bar
        self._artifact = artifact
        self._next_update = time.monotonic() + SECONDS_BETWEEN_UPDATES
        self._away = False

    def expect(self, total: int) -> None:
        """How much there is in all, where that is known only once the work is under way."""
        self._bar.total = total

    def advance(self, units: int = 1) -> None:
        """Some more units are done."""
        self._bar.update(units)
        if time.monotonic() > self._next_update:
            self.tell(100.0 * self._bar.n / max(1, self._bar.total))

    def tell(self, percent: float) -> None:
        """Let Prefect show it; a server that is away is left alone for a while, and the work goes on."""
        if self._artifact is None:
            return
        wait = SECONDS_BETWEEN_UPDATES
        try:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                update_progress_artifact(self._artifact, percent)
        except (TransportError, PrefectHTTPStatusError) as error:
            wait = SECONDS_UNTIL_ANOTHER_TRY
            if not self._away:
                run_logger().warning("the Prefect server shows no progress now (%s); the work goes on", error)
            self._away = True
        self._next_update = time.monotonic() + wait


def show_link(key: str, link: str, description: str) -> None:
    """A link in the log and, inside a Prefect run, an artifact of it."""
    run_logger().info("%s: %s", description, link)
    if TaskRunContext.get() is not None or FlowRunContext.get() is not None:
        create_link_artifact(link=link, key=key, description=description)


@contextmanager
def progress(description: str, total: int, unit: str) -> Iterator[Progress]:
    """A terminal bar (where there is a terminal) and, inside a Prefect run, a progress artifact."""
    inside = TaskRunContext.get() is not None or FlowRunContext.get() is not None
    artifact = create_progress_artifact(0.0, description=description) if inside else None
    artifact_id = artifact if isinstance(artifact, UUID) else None
    with tqdm(total=total, desc=description, unit=unit, file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        shown = Progress(bar, artifact_id)
        yield shown
        shown.tell(100.0)
