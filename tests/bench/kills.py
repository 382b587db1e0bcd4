"""The long form of the kills: indexing killed 25 times at random moments, for more seeds than the tests have."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["rows"]

SEEDS = range(10, 15)
KILLS = 25


def rows() -> Iterator[dict[str, Any]]:
    """One row a seed.

    Raises:
        CalledProcessError: a resumed store could not be finished.
    """
    for seed in SEEDS:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, "-m", "tests.harness.kills", folder, str(seed), str(KILLS)]
            found = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        yield {"seed": seed, **json.loads(found.stdout.splitlines()[-1]), "seconds": round(time.perf_counter() - start)}
