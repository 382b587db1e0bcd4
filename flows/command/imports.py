"""Importing heavy libraries sooner."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["many_imports"]


@contextmanager
def many_imports() -> Iterator[None]:
    """Make the imports in this block faster: the garbage collector pauses, and afterwards ignores what they made.

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
