"""The power is cut twenty times while a corpus is indexed and valued; the same command ends with the same bytes."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.harness.power import can_mount, cut

__all__ = ["rows"]

CUTS = 20


def rows() -> Iterator[dict[str, Any]]:
    """One row.

    Raises:
        AssertionError: the same command then ended otherwise.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not can_mount(folder):
            yield {"cuts": 0, "why": "a disk of one's own needs the right to mount one"}
            return
        start = time.perf_counter()
        problems = cut(folder, CUTS, 1)
    assert not problems, problems
    yield {"cuts": CUTS, "problems": 0, "seconds": round(time.perf_counter() - start)}
