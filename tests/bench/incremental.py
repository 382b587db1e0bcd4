"""What 1 % of new documents cost beside the whole corpus: reading, tokenising, planning, gradients, writing.

Llama-shaped, 4 layers, hidden size 256, rank 16; the tasks' bodies, so without the seconds Prefect needs to start.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.corpus.steps import prepare_corpus
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.gradients.steps import index_gradients
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.steps import make_bases
from dataworth.tasks.training.small_model import train_tokenizer
from tests.bench.indexing import model_of
from tests.reference.checkpoints import TEXTS

__all__ = ["rows"]

DOCUMENTS = 3000
WORDS = 60
NEW = 0.01


def rows() -> Iterator[dict[str, Any]]:
    """One row."""
    folder = Path(tempfile.mkdtemp())
    try:
        yield _measured(folder)
    finally:
        shutil.rmtree(folder)


def _measured(folder: Path) -> dict[str, Any]:
    tokenizer = train_tokenizer(TEXTS, 300)
    model_of(256, 4).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    words, generator = " ".join(TEXTS).split(), np.random.default_rng(0)
    texts = [" ".join(generator.choice(words, WORDS)) for _ in range(round(DOCUMENTS * (1 + NEW)))]
    model, store = ModelConfig(name=str(folder / "model")), str(folder / "store")
    load(model)  # a server that indexes every night has it, too; both measurements are without it
    bases = make_bases(store, model, ProjectionConfig())

    def indexed(n_documents: int) -> float:
        path = folder / f"{n_documents}.jsonl"
        with path.open("w") as file:
            for number, text in enumerate(texts[:n_documents]):
                file.write(json.dumps({"id": f"d{number}", "source": f"s{number % 7}", "text": text}) + "\n")
        start = time.perf_counter()
        corpus = prepare_corpus(store, model, CorpusConfig(files=[str(path)]))
        index_gradients(store, model, corpus, bases, GradientsConfig(), "the corpus")
        return time.perf_counter() - start

    whole, added, again = indexed(DOCUMENTS), indexed(len(texts)), indexed(len(texts))
    return {
        "documents": f"{DOCUMENTS:,} and {len(texts) - DOCUMENTS} new",
        "seconds for all": round(whole, 1),
        "seconds for the new": round(added, 2),
        "of all": f"{added / whole:.1%}",
        "seconds for none": round(again, 2),
    }
