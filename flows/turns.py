"""Runs that would get in each other's way take turns: the second waits, is skipped or is refused.

A run holds the writer's lock of a name made of its parameters. Runs with other parameters meet only at the stores
themselves, whose own locks then refuse the second: it begins again, and finds there what the first has made.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.states import Cancelled

from flows.config import CorpusRunConfig
from storage.errors import StoreBusyError
from storage.locations import StoreFolders
from storage.manifest import writer_lock
from storage.ref import fingerprint
from tasks.progress import run_logger

__all__ = ["in_turn", "unless_cancelled"]

T = TypeVar("T")

SECONDS_BETWEEN_TRIES = 2.0
SECONDS_BETWEEN_LOOKS = 3.0
# They do not decide what a run writes to its store.
IRRELEVANT = {"store", "overlap", "tracking", "cluster", "events"}


def in_turn(store: str, config: CorpusRunConfig, work: Callable[[], T]) -> T | State[Any]:
    """Do some work while no other run with the same parameters does.

    Args:
        store: root of the stores.
        config: parameters of the run, and what to do where another is under way.
        work: is begun again where a store turns out to be busy; what is made is found again.

    Returns:
        What the work returns; the state Skipped where it was skipped.

    Raises:
        StoreBusyError: another run is under way, and `overlap` is `refuse`.
    """
    name = fingerprint({"run": 1, **config.model_dump(mode="json", exclude=IRRELEVANT)})
    waiting = False
    while True:
        try:
            with writer_lock(StoreFolders(store).runs / name):
                if waiting:
                    run_logger().info("the other run has ended: going on")
                return work()
        except StoreBusyError as error:
            if config.overlap == "refuse":
                raise
            if config.overlap == "skip":
                run_logger().warning("skipped: %s", error)
                return _skipped(str(error))
            if not waiting:
                run_logger().info("waiting for another run to end (overlap: wait): %s", error)
            waiting = True
            time.sleep(SECONDS_BETWEEN_TRIES)


def _skipped(reason: str) -> State[Any]:
    return State(type=StateType.COMPLETED, name="Skipped", message=reason, data={"skipped": reason})


@contextmanager
def _cancellable() -> Iterator[threading.Event]:
    """Interrupt the block when its run is cancelled, where no worker does: runs started from the command line.

    Yields an event that is set then.
    """
    asked, ended = threading.Event(), threading.Event()
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or run.deployment_id is not None or run.parent_task_run_id is not None:
        yield asked
        return

    def look() -> None:
        with get_client(sync_client=True) as client:
            while not ended.wait(SECONDS_BETWEEN_LOOKS):
                try:
                    state = client.read_flow_run(run.id).state
                except Exception:  # a server that is away for a moment is asked again
                    continue
                if state is not None and state.type == StateType.CANCELLING and not ended.is_set():
                    asked.set()
                    os.kill(os.getpid(), signal.SIGINT)
                    return

    watcher = threading.Thread(target=look, name="cancelling", daemon=True)
    watcher.start()
    try:
        yield asked
    finally:
        ended.set()


def unless_cancelled(work: Callable[[], T]) -> T | State[Any]:
    """Do some work; where its run is cancelled meanwhile, the state Cancelled."""
    with _cancellable() as asked:
        try:
            return work()
        except KeyboardInterrupt:
            if not asked.is_set():
                raise
            return Cancelled(message="cancelled; what was finished is kept, the next run goes on from there")
