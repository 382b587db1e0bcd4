"""What a person sees of long work: a log, links, how far it is. Where that goes a sink decides, set by the caller."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import LoggerAdapter
from typing import Any

from tqdm import tqdm

__all__ = ["Progress", "Sink", "progress", "run_logger", "set_sink", "show_link"]

SECONDS_BETWEEN_UPDATES = 2.0
# Where nobody sees a bar.
SECONDS_BETWEEN_LINES = 60.0
# Where the sink could not show the last one.
SECONDS_UNTIL_ANOTHER_TRY = 30.0


class Sink:
    """The project's own logger and nothing else; others are of this class (see tasks/wrapping.py)."""

    def logger(self) -> "logging.Logger | LoggerAdapter[Any]":
        """Where lines of the log go."""
        return logging.getLogger("dataworth")

    def begin(self, description: str) -> Callable[[float], bool] | None:
        """What is to be told percents of a piece of work from now on; it answers whether it could show them."""
        return None

    def link(self, key: str, link: str, description: str) -> None:
        """Show an address to look at."""
        self.logger().info("%s: %s", description, link)


_sink = Sink()


def set_sink(sink: Sink) -> None:
    """Of this process, from now on."""
    global _sink
    _sink = sink


def run_logger() -> "logging.Logger | LoggerAdapter[Any]":
    """The logger of the run under way."""
    return _sink.logger()


def show_link(key: str, link: str, description: str) -> None:
    """A link in the log, and wherever else the sink shows links."""
    _sink.link(key, link, description)


class Progress:
    """Counts units of work; see `progress`."""

    def __init__(
        self, bar: "tqdm[Any]", show: Callable[[float], bool] | None, description: str, total: int, unit: str
    ) -> None:
        # A bar that is not shown keeps nothing.
        self._bar, self._show, self._description, self._total, self._unit = bar, show, description, total, unit
        self._n = 0
        self._begun = time.monotonic()
        self._next_update = self._begun + SECONDS_BETWEEN_UPDATES
        self._next_line = self._begun + SECONDS_BETWEEN_LINES

    def expect(self, total: int) -> None:
        """How much there is in all, where that is known only once the work is under way."""
        self._bar.total = self._total = total

    def advance(self, units: int = 1) -> None:
        """Some more units are done."""
        self._n += units
        self._bar.update(units)
        now = time.monotonic()
        if now > self._next_update:
            self.tell(100.0 * self._n / max(1, self._total))
        if self._bar.disable and now > self._next_line:
            self._next_line = now + SECONDS_BETWEEN_LINES
            self._write(now - self._begun)

    def _write(self, seconds: float) -> None:
        """A line of the log: how far it is, how fast, and how long it still takes."""
        left = max(0, self._total - self._n) * seconds / max(1, self._n)
        run_logger().info(
            "%s: %s of %s %ss, %s a second, about %s left",
            self._description,
            f"{self._n:,}",
            f"{self._total:,}",
            self._unit,
            f"{self._n / seconds:.3g}",
            f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s",
        )

    def tell(self, percent: float) -> None:
        """Let the sink show it."""
        if self._show is not None:
            shown = self._show(percent)
            self._next_update = time.monotonic() + (SECONDS_BETWEEN_UPDATES if shown else SECONDS_UNTIL_ANOTHER_TRY)


@contextmanager
def progress(description: str, total: int, unit: str) -> Iterator[Progress]:
    """A terminal bar, or where there is no terminal a line of the log a minute; and whatever the sink shows."""
    show = _sink.begin(description)
    with tqdm(total=total, desc=description, unit=unit, file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        shown = Progress(bar, show, description, total, unit)
        yield shown
        shown.tell(100.0)
