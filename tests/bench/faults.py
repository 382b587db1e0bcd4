"""Faults at calls that write, one by one, and the same command again: kill, I/O error, full disk, torn write."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.harness.faults import COMMANDS, swept

__all__ = ["rows"]

# Every call of the short ones.
EVERY = {"withdraw": 1, "verify": 1, "compact": 5, "compact what was set aside": 9, "publish": 7, "audit": 3}
ELSE = 25


def rows() -> Iterator[dict[str, Any]]:
    """One row a command.

    Raises:
        AssertionError: a command ended otherwise than undisturbed.
    """
    for command in COMMANDS:
        every = EVERY.get(command, ELSE)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = swept(Path(folder), {command: every})[command]
        assert not found["problems"], found["problems"]
        yield {
            "command": command,
            "calls that write": found["calls"],
            "faults": found["faults"],
            "problems": len(found["problems"]),
            "seconds": round(time.perf_counter() - start),
        }
