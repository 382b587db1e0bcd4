"""Peak memory of indexing beside the frozen forward+backward of the same batch; CPU, each in a process of its own.

The peak is the process's highest resident memory over that before the first pass, model loaded.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from dataworth.tasks.projection.config import ProjectionConfig
from tests.bench.indexing import HIDDEN, LAYERS, FrozenPass, Indexer, batch_of, model_of

__all__ = ["rows"]

WORKS = ("frozen", "16", "64")
PASSES = 3


def peak_bytes(work: str) -> int:
    """Bytes this process needs at most for some passes, beyond the loaded model."""
    torch.set_num_threads(1)
    model, batch = model_of(HIDDEN, LAYERS), batch_of()
    with tempfile.TemporaryDirectory() as folder:
        before = psutil.Process().memory_info().rss
        if work == "frozen":
            frozen = FrozenPass(model, batch)
            for _ in range(PASSES):
                frozen()
        else:
            indexer = Indexer(model, batch, ProjectionConfig(rank=int(work)), Path(folder))
            for _ in range(PASSES):
                indexer()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def rows() -> Iterator[dict[str, Any]]:
    """One row a rank."""
    code = "import sys; from tests.bench.memory import peak_bytes; print(peak_bytes(sys.argv[1]))"
    peaks = {
        work: int(subprocess.run([sys.executable, "-c", code, work], capture_output=True, check=True).stdout)
        for work in WORKS
    }
    for work in WORKS[1:]:
        yield {
            "indexing": f"rank {work}",
            "peak MB": round(peaks[work] / 2**20),
            "frozen MB": round(peaks["frozen"] / 2**20),
            "ratio": round(peaks[work] / peaks["frozen"], 3),
        }
