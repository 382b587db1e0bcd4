"""Runs that would get in each other's way take turns: the second waits, is skipped or is refused.

A run holds the writer's lock of a name made of its parameters. Runs with other parameters meet only at the stores
themselves, whose own locks then refuse the second: it begins again, and finds there what the first has made.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from prefect.client.schemas.objects import State, StateType

from flows.config import CorpusRunConfig
from storage.errors import StoreBusyError
from storage.locations import StoreFolders
from storage.manifest import writer_lock
from storage.ref import fingerprint
from tasks.progress import run_logger

__all__ = ["each_in_turn", "in_turn"]

T = TypeVar("T")

SECONDS_BETWEEN_TRIES = 2.0
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
    while True:
        try:
            with writer_lock(StoreFolders(store).runs / name):
                return work()
        except StoreBusyError as error:
            if config.overlap == "refuse":
                raise
            if config.overlap == "skip":
                run_logger().warning("skipped: %s", error)
                return _skipped(str(error))
            run_logger().info("waiting for another run to end (overlap: wait): %s", error)
            _wait(error.folder)
            run_logger().info("the other run has ended: going on")


def each_in_turn(store: str, config: CorpusRunConfig, work: Callable[[CorpusRunConfig], T]) -> list[T] | State[Any]:
    """Do some work for one checkpoint after another, each while no other run does it: see `in_turn`.

    Args:
        store: root of the stores.
        config: parameters of the run.
        work: is given those of a run of one checkpoint.

    Returns:
        What the work returns for each; the state Skipped where one was skipped, and with it those after it.
    """
    found: list[T] = []
    for one in config.by_checkpoint:
        outcome = in_turn(store, one, partial(work, one))
        if isinstance(outcome, State):
            return outcome
        found.append(outcome)
    return found


def _wait(folder: str | None) -> None:
    """Until nobody holds a folder's lock."""
    time.sleep(SECONDS_BETWEEN_TRIES)
    while folder is not None:
        try:
            with writer_lock(folder):
                return
        except StoreBusyError:
            time.sleep(SECONDS_BETWEEN_TRIES)


def _skipped(reason: str) -> State[Any]:
    return State(type=StateType.COMPLETED, name="Skipped", message=reason, data={"skipped": reason})
