"""Indexing that is killed again and again: `python -m tests.harness.kills FOLDER SEED KILLS` prints what it saw.

Model and corpus are loaded once; each attempt is a forked child that is killed (SIGKILL) at a random moment. The store
that a last, undisturbed attempt completes is compared, byte by byte, with one that was never disturbed.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

import dataworth.storage.gradients
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.corpus.steps import prepare_corpus
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.gradients.steps import index_gradients
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.steps import make_bases
from dataworth.tasks.training.small_model import train_tokenizer
from tests.reference.checkpoints import TEXTS, save_checkpoint

__all__ = ["stored_files"]

N_DOCUMENTS = 300
ROWS_PER_SHARD = 8


def stored_files(path: Path) -> dict[str, bytes]:
    """Relative path → content of every file below a folder, but for locks."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.name.endswith(".lock")
    }


def n_done(store: Path) -> int:
    """Shards whose gradients are in place."""
    return len(list(store.rglob("gradients/c/*/0")))


def main(folder: Path, seed: int, n_kills: int) -> None:
    """Entry point."""
    torch.set_num_threads(1)
    dataworth.storage.gradients.rows_per_shard = lambda n_columns, itemsize: ROWS_PER_SHARD
    tokenizer = train_tokenizer(TEXTS, 300)
    save_checkpoint("llama", folder / "model", tokenizer)
    words, generator = " ".join(TEXTS).split(), np.random.default_rng(seed)
    rows = [
        {"id": f"d{number}", "source": "s", "text": " ".join(generator.choice(words, generator.integers(4, 30)))}
        for number in range(N_DOCUMENTS)
    ]
    corpus_file = folder / "corpus.jsonl"
    corpus_file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    model = ModelConfig(name=str(folder / "model"))

    def prepared(store: Path):
        corpus = prepare_corpus(str(store), model, CorpusConfig(files=[str(corpus_file)], max_length=32))
        return str(store), model, corpus, make_bases(str(store), model, ProjectionConfig(rank=3))

    def indexed(arguments) -> None:
        index_gradients(*arguments, GradientsConfig(batch_tokens=128), "test")

    straight, disturbed = prepared(folder / "straight"), prepared(folder / "disturbed")
    indexed(straight)
    n_shards = n_done(folder / "straight")
    # The longest delay follows the progress, so that the kills are spread over the whole work.
    moments, kills, longest = random.Random(seed), 0, 0.1
    for _ in range(40 * n_kills):
        if kills == n_kills:
            break
        child = os.fork()
        if child == 0:
            try:
                indexed(disturbed)
            finally:
                os._exit(0)
        time.sleep(moments.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        longest *= 1.25 if n_done(folder / "disturbed") < n_shards * kills / (n_kills + 2) else 0.8
    done_before = n_done(folder / "disturbed")
    indexed(disturbed)
    same = stored_files(folder / "straight" / "gradients") == stored_files(folder / "disturbed" / "gradients")
    seen = {"kills": kills, "shards": n_shards, "done after the last kill": done_before, "same bytes": same}
    sys.stdout.write(json.dumps(seen) + "\n")
    only = set(stored_files(folder / "disturbed" / "gradients")) ^ set(stored_files(folder / "straight" / "gradients"))
    sys.stderr.write("".join(f"{name}\n" for name in sorted(only)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
