"""Importing heavy libraries sooner."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["many_imports"]


@contextmanager
def many_imports() -> Iterator[None]:
    """Imports in this block pause the collector, then take what they made out of its sight.

    Importing the flows makes a million objects, all of which stay; looking through them again and again took a quarter
    of the time of these imports.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
