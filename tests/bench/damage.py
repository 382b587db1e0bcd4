"""The long form of damaged stores: 2,000 places; the same commands say the same, or why not in a sentence."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataworth.tasks.training.small_model import train_tokenizer
from tests.harness.damage import Valued, sweep
from tests.reference.checkpoints import TEXTS, save_checkpoint

__all__ = ["rows"]

PLACES = 2_000


def rows() -> Iterator[dict[str, Any]]:
    """One row a kind of file.

    Raises:
        AssertionError: a command said something else than before, or what it said names no place.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_checkpoint("llama", folder / "model", train_tokenizer(TEXTS, 300))
        valued = Valued(folder, folder / "model", TEXTS)
        start = time.perf_counter()
        counts = sweep(valued, PLACES, 1)
        seconds = round(time.perf_counter() - start)
    for kind, found in counts.items():
        yield {"kind": kind, "places": found.total(), **found, "seconds of all": seconds}
