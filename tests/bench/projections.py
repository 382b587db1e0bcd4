"""The projection itself, by kind, and what it buys end to end; CPU, one thread.

The projection is what is added to a layer's own products: both sides, the sum over tokens, and the sketch.
"""

import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dataworth.tasks.projection.bases import layer_projection
from dataworth.tasks.projection.config import ProjectionConfig
from tests.bench.indexing import BATCH, HIDDEN, LAYERS, ROUNDS, TOKENS, FrozenPass, Indexer, batch_of, model_of
from tests.bench.machine import interleaved, ratio

__all__ = ["rows"]

KINDS = ("random", "mask", "factgrass")
RANKS = (16, 64)
WIDTH = 1024


def _one_layer(kind: str, rank: int) -> Callable[[], None]:
    projection = layer_projection("layer", WIDTH, WIDTH, False, ProjectionConfig(kind=kind, rank=rank))
    generator = torch.Generator().manual_seed(0)
    activation, gradient = (torch.randn(BATCH, TOKENS, WIDTH, generator=generator) for _ in range(2))

    def project() -> None:
        projection.gradient(projection.projected_output_gradient(gradient), projection.projected_activation(activation))

    return project


def rows() -> Iterator[dict[str, Any]]:
    """One row a kind and rank."""
    torch.set_num_threads(1)
    for rank in RANKS:
        seconds = interleaved({kind: _one_layer(kind, rank) for kind in KINDS}, 3 * ROUNDS)
        for kind in KINDS:
            yield {
                "projection": kind,
                "rank": rank,
                "ms a layer": round(1000 * statistics.median(seconds[kind]), 2),
                "times cheaper than random": ratio(seconds["random"], seconds[kind])[0],
            }
    model, batch = model_of(HIDDEN, LAYERS), batch_of()
    folder = Path(tempfile.mkdtemp())
    try:
        for rank in RANKS:
            works: dict[str, Callable[[], None]] = {"frozen": FrozenPass(model, batch)}
            works |= {kind: Indexer(model, batch, ProjectionConfig(kind=kind, rank=rank), folder) for kind in KINDS}
            seconds = interleaved(works, ROUNDS)
            for kind in KINDS:
                middle = ratio(seconds["frozen"], seconds[kind])[0]
                yield {"end to end": kind, "rank": rank, "hidden": HIDDEN, "of the frozen speed": middle}
    finally:
        shutil.rmtree(folder)
