"""A first look from a sketch: how many of the 10 best rows it brings among 100, and the seconds it takes.

20,000 rows of 8,192 columns whose inner products have the decaying spectrum that gradients have; 50 queries.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from dataworth.tasks.scoring.sketches import best_rows, sketch_matrix

__all__ = ["rows"]

ROWS = 20_000
COLUMNS = 8192
DIRECTIONS = 512
QUERIES = 50
BEST = 10
CANDIDATES = 100


def rows() -> Iterator[dict[str, Any]]:
    """One row a width of the sketch."""
    generator = np.random.default_rng(0)
    basis = generator.standard_normal((DIRECTIONS, COLUMNS)).astype(np.float32) / np.sqrt(COLUMNS)
    spectrum = (1 / np.sqrt(1 + np.arange(DIRECTIONS))).astype(np.float32)

    def drawn(count: int) -> np.ndarray:
        latent = generator.standard_normal((count, DIRECTIONS)).astype(np.float32) * spectrum
        noise = generator.standard_normal((count, COLUMNS)).astype(np.float32) * (0.3 / np.sqrt(COLUMNS))
        return (latent @ basis + noise).astype(np.float32)

    stored, queries = drawn(ROWS), drawn(QUERIES)
    start = time.perf_counter()
    exact = np.argsort(-(queries @ stored.T), axis=1, kind="stable")[:, :BEST]
    exact_seconds = (time.perf_counter() - start) / QUERIES
    for width in (64, 256, 1024):
        matrix = sketch_matrix(COLUMNS, width)
        narrow = (stored @ matrix).astype(np.float16)
        start = time.perf_counter()
        found = [best_rows(iter([narrow]), query @ matrix, CANDIDATES) for query in queries]
        seconds = (time.perf_counter() - start) / QUERIES
        recall = np.mean([np.isin(best, some).mean() for best, some in zip(exact, found, strict=True)])
        yield {
            "sketch": width,
            "of the row's bytes": f"{width / COLUMNS:.1%}",
            f"of the {BEST} best among {CANDIDATES}": f"{recall:.1%}",
            "seconds a query, index built anew": round(seconds, 3),
            "exact, rows in memory": round(exact_seconds, 3),
        }
