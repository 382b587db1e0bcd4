"""Places on the devices of this machine: one task computes on each at a time, whoever started it.

The system frees a place in the moment in which its process ends, however it ends. A limit of a Prefect server does not:
its server may die with the run, and then counts the place as taken for good.
"""

import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from filelock import FileLock, Timeout

from dataworth.storage.durable import make_folder
from dataworth.storage.locations import home
from dataworth.tasks.progress import run_logger

__all__ = ["on_a_device"]

P = ParamSpec("P")
T = TypeVar("T")

SECONDS_BETWEEN_TRIES = 0.5

# Tasks of one process, in whatever threads, share its place.
_TURN = threading.RLock()
_depth = 0


def on_a_device(work: Callable[P, T]) -> Callable[P, T]:
    """Do some work on a place, for which it waits; work inside of it is on the same one."""

    @wraps(work)
    def placed(*arguments: P.args, **named: P.kwargs) -> T:
        with _TURN, _place():
            return work(*arguments, **named)

    return placed


@contextmanager
def _place() -> Iterator[None]:
    global _depth
    lock = None if _depth else _taken()
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if lock is not None:
            lock.release()


def _taken() -> FileLock:
    """The first place that is free."""
    folder = home() / "devices"
    make_folder(folder)
    places = [folder / f"{platform.node() or 'host'}-{number}.lock" for number in range(_n_places())]
    waited = False
    while True:
        for path in places:
            lock = FileLock(path, timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            if waited:
                run_logger().info("the device is free: going on")
            return lock
        if not waited:
            run_logger().info("another run computes on this machine's device: this one goes on after it")
            waited = True
        time.sleep(SECONDS_BETWEEN_TRIES)


def _n_places() -> int:
    """One a GPU, one on a machine without."""
    import torch

    return max(1, torch.cuda.device_count())
