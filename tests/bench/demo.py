"""The demo as `make demo` runs it, from nothing and again, against its limits: five minutes, then one."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["rows"]

SECONDS_FROM_NOTHING = 300.0
SECONDS_AGAIN = 60.0
FOUND_THERE = r"the corpus: 0 of [\d,]+ examples"


def rows() -> Iterator[dict[str, Any]]:
    """One row a run.

    Raises:
        CalledProcessError: the demo failed.
        RuntimeError: it took longer than its limit, or the second run trained or indexed anew.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = {"DATAWORTH_HOME": f"{folder}/home", "PREFECT_HOME": f"{folder}/prefect"}
        for run, limit in (("from nothing", SECONDS_FROM_NOTHING), ("again", SECONDS_AGAIN)):
            command = [Path(sys.executable).with_name("dataworth"), "demo", "--results", f"{folder}/demo"]
            start = time.perf_counter()
            told = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=True)
            seconds = time.perf_counter() - start
            if run == "again" and not (
                "the model is there already" in told.stderr and re.search(FOUND_THERE, told.stderr)
            ):
                raise RuntimeError(f"the second run computed again what the first had left:\n{told.stderr}")
            rates = re.findall(r"^(influence|BM25|chance) +(\d+)%", told.stdout, re.M)
            own_first = {f"{name}: own source first": f"{rate}%" for name, rate in rates}
            yield {"run": run, "seconds": round(seconds), "limit": round(limit), **own_first}
            if seconds > limit:
                raise RuntimeError(f"the demo, {run}: {seconds:.0f} s, expected at most {limit:.0f} s")
