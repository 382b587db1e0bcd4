"""Ctrl-C and SIGTERM, at whatever moment they come: the program says one sentence and ends with exit code 130.

Libraries that are interrupted in the middle of something raise errors of their own, and log more of them; what came
first was the interrupt.
"""

import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

__all__ = ["forget_interrupt", "interrupted", "keep_quiet_from_now_on", "tell_interrupts"]

_SEEN = threading.Event()
# Seconds after which an interrupt comes again that was raised where Python drops exceptions.
AGAIN = 0.05
# They tell, after an interrupt, of every connection and task that it cut.
QUIET = ("distributed", "tornado", "asyncio", "websockets", "concurrent.futures")


def tell_interrupts() -> None:
    """From now on Ctrl-C and SIGTERM raise KeyboardInterrupt and are remembered; background jobs ignore Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.unraisablehook = _dropped(sys.unraisablehook)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)


def interrupted() -> bool:
    """Whether Ctrl-C or SIGTERM came."""
    return _SEEN.is_set()


def forget_interrupt() -> None:
    """Forget an interrupt that this program caused itself, and reports in its own way."""
    _SEEN.clear()


def keep_quiet_from_now_on() -> None:
    """Ignore both signals from now on: the outcome has been reported, so the rest ends without a word."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _dropped(otherwise: Any) -> Any:
    """A hook for exceptions that Python drops, as in callbacks of C code and finalizers: an interrupt comes again."""

    def hook(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            otherwise(dropped)
            return
        threading.Timer(AGAIN, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()

    return hook


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _SEEN.set()
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    raise KeyboardInterrupt
