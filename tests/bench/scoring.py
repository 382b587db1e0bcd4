"""Scoring 64 queries over a store of 2 GB beside the slower of reading its bytes and the bare matrix product.

One process, as many threads as cores, each scoring shards of its own. Memory and time also at a quarter of the store.
Then the precision of each stored data type, against scores of float32 rows.
"""

import gc
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from dataworth.storage.encoding import STORED, decoded, encoded
from dataworth.storage.gradients import GradientStore
from dataworth.storage.layer_table import Layer
from dataworth.storage.segments import Segment
from dataworth.tasks.scoring.blocks import Preconditioned
from dataworth.tasks.scoring.combination import Combination
from dataworth.tasks.scoring.plan import ShardWork, corpus_places, shard_works
from dataworth.tasks.scoring.shards import score_shard
from tests.bench.machine import interleaved, ratio

__all__ = ["rows"]

COLUMNS = 1024
SHARDS = 256  # of 8 MB
SOURCES = 50
QUERIES = 64
TOP_K = 20
ROUNDS = 15
THREADS = os.cpu_count() or 1


def filled_store(folder: Path, n_shards: int) -> Segment:
    """A store of random rows, one row a document."""
    table = [Layer(f"l{number}", 256 * number, 256) for number in range(COLUMNS // 256)]
    store = GradientStore.create(folder, "bench", table, "float16", {})
    n_rows = n_shards * store.rows_per_shard
    names = np.asarray([number.to_bytes(8, "big").hex().encode() for number in range(n_rows)], "S32")
    (segment,) = store.plan(names, np.ones(n_rows, np.int64))
    generator = np.random.default_rng(0)
    block = generator.standard_normal((store.rows_per_shard, COLUMNS)).astype(np.float32)
    for shard in range(n_shards):
        signs = generator.choice(np.array([-1, 1], np.float32), COLUMNS)
        columns = {"n_tokens": np.ones(len(block), np.int32), "loss": np.zeros(len(block), np.float32)}
        segment.write_shard(shard, segment.encoded(np.roll(block, shard, axis=0) * signs), columns)
    return segment


class Pass:
    """Scores every shard of a segment, a few shards ahead of the merge, like a worker of the cluster."""

    def __init__(self, segment: Segment, n_shards: int) -> None:
        n_rows = n_shards * segment.rows_per_shard
        self.sources = np.arange(n_rows) % SOURCES
        places = corpus_places(segment.contents[:n_rows], np.arange(n_rows))
        works = shard_works(
            str(segment.path),
            segment.contents[:n_rows],
            segment.first_rows[: n_rows + 1],
            segment.rows_per_shard,
            places,
        )
        self.works: list[ShardWork] = list(works)
        queries = np.random.default_rng(1).standard_normal((QUERIES, COLUMNS)).astype(np.float32)
        self.queries = Preconditioned(np.concatenate([queries, queries.sum(axis=0, keepdims=True)]), None)

    def __call__(self) -> None:
        combination = Combination(self.sources, SOURCES, QUERIES + 1, TOP_K, None)

        def scored(work: ShardWork) -> Any:
            found = combination.reached
            return score_shard(work, self.queries, self.sources, SOURCES, TOP_K, keep_block=False, floors=found)

        with ThreadPoolExecutor(THREADS) as pool:
            waiting = [pool.submit(scored, work) for work in self.works[: 4 * THREADS]]
            for number, work in enumerate(self.works):
                result = waiting.pop(0).result()
                if number + 4 * THREADS < len(self.works):
                    waiting.append(pool.submit(scored, self.works[number + 4 * THREADS]))
                combination.add(work, result.tally, result.partial, result.block, result.documents)
        if int(combination.tally.counts.sum()) != len(self.sources):
            raise RuntimeError("not every document was scored")


def read_bytes(segment: Segment) -> Callable[[], None]:
    """Read every byte of the gradients once from the page cache with numpy."""
    target = np.empty(segment.rows_per_shard * COLUMNS * 2, np.uint8)

    def read() -> None:
        for shard in range(segment.n_shards):
            path = segment.path / "gradients" / "c" / str(shard) / "0"
            np.copyto(target, np.memmap(path, np.uint8, mode="r")[: len(target)])

    return read


def bare_product(segment: Segment) -> Callable[[], None]:
    """The matrix products of the same shapes, in float32, operands at hand, on all threads."""
    generator = np.random.default_rng(2)
    queries = torch.from_numpy(generator.standard_normal((QUERIES + 1, COLUMNS)).astype(np.float32))
    block = torch.from_numpy(generator.standard_normal((segment.rows_per_shard, COLUMNS)).astype(np.float32))

    def multiply() -> None:
        torch.set_num_threads(THREADS)
        for _ in range(segment.n_shards):
            torch.mm(queries, block.T)

    return multiply


def peak_growth(work: Callable[[], None]) -> int:
    """Most anonymous memory of this process during a call, over that before, in bytes; mapped files do not count."""
    process, stop = psutil.Process(), threading.Event()
    gc.collect()
    before = process.memory_info()
    peak = 0

    def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            now = process.memory_info()
            peak = max(peak, (now.rss - now.shared) - (before.rss - before.shared))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    stop.set()
    watcher.join()
    return peak


def precision() -> Iterator[dict[str, Any]]:
    """How far scores of rows in each data type are from those of float32 rows, relative, and bytes a row."""
    generator = np.random.default_rng(3)
    # Rows and layers of very different size, as gradients are.
    sizes = np.exp(generator.normal(0, 1.5, (2048, 1))) * np.repeat(np.exp(generator.normal(0, 1.5, 4)), 256)
    values = (generator.standard_normal((2048, COLUMNS)) * sizes).astype(np.float32)
    queries = generator.standard_normal((QUERIES, COLUMNS)).astype(np.float32)
    layers = [slice(first, first + 256) for first in range(0, COLUMNS, 256)]
    exact = queries.astype(np.float64) @ values.T
    for dtype, stored in STORED.items():
        found = encoded(values, dtype, layers)
        scores = queries.astype(np.float64) @ decoded(found.rows, found.scales, dtype, layers).astype(np.float64).T
        errors = np.linalg.norm(scores - exact, axis=0) / np.linalg.norm(exact, axis=0)
        order, true = (np.argsort(-scores, axis=1)[:, :20], np.argsort(-exact, axis=1)[:, :20])
        kept = statistics.mean(len(set(one) & set(two)) / 20 for one, two in zip(order, true, strict=True))
        n_bytes = COLUMNS * stored.itemsize + (0 if found.scales is None else found.scales.shape[1] * 4)
        yield {
            "stored as": dtype,
            "bytes a row": n_bytes,
            "of its columns": round(n_bytes / (COLUMNS * stored.itemsize), 3),
            "median relative error of scores": f"{statistics.median(errors.tolist()):.1e}",
            "of the top 20": round(kept, 3),
        }


def rows() -> Iterator[dict[str, Any]]:
    """The table."""
    folder = Path(tempfile.mkdtemp())
    try:
        segment = filled_store(folder, SHARDS)
        whole, quarter = Pass(segment, SHARDS), Pass(segment, SHARDS // 4)
        works = {
            "read": read_bytes(segment),
            "product": bare_product(segment),
            "quarter": quarter,
            "score": whole,
        }
        seconds = interleaved(works, ROUNDS)
        slower = max(("read", "product"), key=lambda name: statistics.median(seconds[name]))
        middle, low, high = ratio(seconds[slower], seconds["score"])
        gigabytes = SHARDS * segment.rows_per_shard * COLUMNS * 2 / 1e9
        yield {
            "store GB": round(gigabytes, 2),
            "queries": QUERIES,
            "threads": THREADS,
            **{
                f"seconds to {name}": round(statistics.median(seconds[name]), 2)
                for name in ("read", "product", "score")
            },
            "pairs/s": f"{len(whole.sources) * QUERIES / statistics.median(seconds['score']):.3g}",
            "of the slower limit": middle,
            "quartiles": f"{low} … {high}",
        }
        yield {
            "documents": f"{len(quarter.sources):,} and {len(whole.sources):,}",
            "seconds": f"{statistics.median(seconds['quarter']):.2f} and {statistics.median(seconds['score']):.2f}",
            "memory MB": f"{peak_growth(quarter) / 2**20:.0f} and {peak_growth(whole) / 2**20:.0f}",
        }
    finally:
        shutil.rmtree(folder)
    yield from precision()
