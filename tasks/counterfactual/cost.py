"""What a method costs: seconds, and the most memory it held."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]

__all__ = ["Cost", "measured_cost"]

SECONDS_BETWEEN_LOOKS = 0.02


@dataclass
class Cost:
    """Args:
    seconds: of wall time.
    n_bytes: most resident memory above that at the start; what the process holds free from before counts as nothing.
    """

    seconds: float = 0.0
    n_bytes: int = 0


@contextmanager
def measured_cost() -> Iterator[Cost]:
    """The cost of the block, complete when it ends."""
    process, cost, ended = psutil.Process(), Cost(), threading.Event()
    first = process.memory_info().rss

    def look() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            cost.n_bytes = max(cost.n_bytes, process.memory_info().rss - first)

    watcher = threading.Thread(target=look, name="memory", daemon=True)
    start = time.perf_counter()
    watcher.start()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - start
        ended.set()
        watcher.join()
        cost.n_bytes = max(cost.n_bytes, process.memory_info().rss - first)
