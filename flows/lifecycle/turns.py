"""Runs that would get in each other's way take turns: the second waits, is skipped or is refused.

A run holds the writer's lock of a name made of its parameters, or of the folder that it makes. Runs with other
parameters meet only at the stores themselves, whose own locks then refuse the second: it begins again, and finds there
what the first has made.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

from prefect.client.schemas.objects import State

from dataworth.config import CorpusRunConfig, Overlap
from dataworth.lifecycle.ending import completed
from dataworth.storage.errors import StoreBusyError
from dataworth.storage.locations import StoreFolders
from dataworth.storage.manifest import writer_lock
from dataworth.storage.place import Location
from dataworth.storage.ref import fingerprint
from dataworth.tasks.progress import run_logger

__all__ = ["each_in_turn", "in_turn", "results_turn", "run_turn"]

T = TypeVar("T")

SECONDS_BETWEEN_TRIES = 2.0
# They do not decide what a run writes to its store.
IRRELEVANT = {"store", "overlap", "tracking", "cluster", "events"}


def run_turn(store: str, config: CorpusRunConfig) -> Location:
    """The place whose lock keeps runs with the same parameters from overlapping."""
    return _turn(store, {"run": 1, **config.model_dump(mode="json", exclude=IRRELEVANT)})


def results_turn(store: str, results: str) -> Location:
    """The place whose lock keeps runs that write to the same results folder from overlapping."""
    return _turn(store, {"results": 1, "folder": results})


def _turn(store: str, parts: dict[str, Any]) -> Location:
    return StoreFolders(store).runs / fingerprint(parts)


def in_turn(turn: Location, overlap: Overlap, work: Callable[[], T]) -> T | State[Any]:
    """Do some work while no other run has the turn.

    Args:
        turn: of `run_turn` or `results_turn`.
        overlap: what to do where another run has it, or is writing a store that the work writes.
        work: is begun again where a store turns out to be busy; what is made is found again.

    Returns:
        What the work returns; the state Skipped where it was skipped.

    Raises:
        StoreBusyError: another run is under way, and `overlap` is `refuse`.
    """
    while True:
        try:
            with _held(turn):
                return work()
        except StoreBusyError as error:
            if overlap == "refuse":
                raise
            if overlap == "skip":
                run_logger().warning("skipped: %s", error)
                return completed("Skipped", str(error), {"skipped": str(error)})
            run_logger().info("waiting for another run to end (overlap: wait): %s", error)
            _wait(error.folder)
            run_logger().info("the other run has ended: going on")


def _held(turn: Location) -> AbstractContextManager[None]:
    """The lock of a turn; none in a store that can only be read, where no run gets into another's way."""
    store = turn.parent.parent
    return nullcontext() if store.is_read_only() else writer_lock(turn)


def each_in_turn(store: str, config: CorpusRunConfig, work: Callable[[CorpusRunConfig], T]) -> list[T] | State[Any]:
    """Do some work for one checkpoint after another, each while no other run does it: see `in_turn`.

    Args:
        store: root of the stores.
        config: parameters of the run.
        work: is given those of a run of one checkpoint.

    Returns:
        What the work returns for each; the state Skipped where one was skipped, and with it those after it.
    """
    outcomes: list[T] = []
    for one in config.by_checkpoint:
        outcome = in_turn(run_turn(store, one), one.overlap, partial(work, one))
        if isinstance(outcome, State):
            return outcome
        outcomes.append(outcome)
    return outcomes


def _wait(folder: str | None) -> None:
    """Until nobody holds a folder's lock."""
    time.sleep(SECONDS_BETWEEN_TRIES)
    while folder is not None:
        try:
            with writer_lock(folder):
                return
        except StoreBusyError:
            time.sleep(SECONDS_BETWEEN_TRIES)
