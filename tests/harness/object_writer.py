"""A process that fills a gradient store, to be killed or stopped: `python -m tests.harness.object_writer PLACE`.

It says "held" once it has the writer's lock, and then writes shard after shard; with --wait it waits for a line on its
standard input before the first one.
"""

import sys

import numpy as np

import dataworth.storage.gradients
import dataworth.storage.s3.leases
from dataworth.storage.gradients import GradientStore
from dataworth.storage.layer_table import Layer
from dataworth.storage.locations import Place

__all__ = ["N_SHARDS", "filled"]

N_SHARDS = 60
ROWS_PER_SHARD = 8
LAYERS = [Layer("l", n_columns=64)]


def filled(place: Place, *, wait: bool = False) -> None:
    """Write every shard that is not there yet, under the writer's lock."""
    dataworth.storage.gradients.rows_per_shard = lambda n_columns, itemsize: ROWS_PER_SHARD
    n_rows = N_SHARDS * ROWS_PER_SHARD
    contents = np.asarray([number.to_bytes(32, "big") for number in range(1, n_rows + 1)], "S32")
    store = GradientStore.create(place, "f", LAYERS, "float16", {})
    with store.writer():
        print("held", flush=True)  # noqa: T201  the parent waits for it
        if wait:
            sys.stdin.readline()
        for segment in store.plan(contents, np.ones(n_rows, np.int64)):
            for shard in segment.open_shards():
                rows = np.random.default_rng(shard).standard_normal((ROWS_PER_SHARD, 64)).astype(np.float32)
                columns = {"n_tokens": np.full(ROWS_PER_SHARD, shard), "loss": np.ones(ROWS_PER_SHARD)}
                segment.write_shard(shard, segment.encoded(rows), columns)


if __name__ == "__main__":
    if "--impatient" in sys.argv:
        dataworth.storage.s3.leases.SECONDS_BETWEEN_RENEWALS = 0.2
    filled(sys.argv[1], wait="--wait" in sys.argv)
