"""The long form of the hostile files: 10,000 of them, each read as it is or refused by one sentence."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.training.small_model import train_tokenizer
from tests.harness.fuzz import fuzz
from tests.reference.checkpoints import TEXTS, save_checkpoint

__all__ = ["rows"]

FILES = 10_000


def rows() -> Iterator[dict[str, Any]]:
    """One row a kind of file.

    Raises:
        AssertionError: a file was neither read as it is nor refused by a sentence.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train_tokenizer(TEXTS, 300)
        for kind in ("llama", "bert classifier"):
            save_checkpoint(kind, folder / kind, tokenizer)
        language, classifier = (ModelConfig(name=str(folder / kind)) for kind in ("llama", "bert classifier"))
        start = time.perf_counter()
        models = {"corpus": language, "queries": language, "classes": classifier}
        counts = fuzz(range(FILES), folder / "files", models)
        seconds = round(time.perf_counter() - start)
    for kind, found in counts.items():
        yield {"kind": kind, "files": found.total(), **found, "seconds of all": seconds}
