"""The step that trains the demo's model."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from dataworth.storage.durable import move_into_place, remove_tree
from dataworth.storage.manifest import is_complete, read_manifest, write_manifest
from dataworth.storage.ref import fingerprint
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.corpus.readers import read_documents
from dataworth.tasks.progress import progress, run_logger
from dataworth.tasks.training.small_model import SmallModel, train_language_model

__all__ = ["train_small_model"]


def train_small_model(folder: str, corpus: CorpusConfig, settings: SmallModel, start: str | None = None) -> str:
    """Train a small language model on a corpus, unless the folder holds the one this would give.

    Args:
        folder: of the model.
        corpus: the documents.
        settings: size and training.
        start: folder of a model that training goes on from, with its tokenizer; None: weights drawn anew.

    Returns:
        The folder.
    """
    target = Path(folder)
    texts = [document.text for document in read_documents(corpus)]
    parts = {"texts": texts, "settings": asdict(settings)}
    tokenizer = None
    if start is not None:
        parts["start"] = _contents(Path(start))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
    name = fingerprint(parts)
    if is_complete(target) and read_manifest(target)["fingerprint"] == name:
        run_logger().info("the model is there already: %s", target)
        return folder
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with progress("training", 0, "step") as bar:

            def on_step(step: int, steps: int, loss: float) -> None:
                bar.expect(steps)
                bar.advance()
                if step % 100 == 0:
                    run_logger().info("step %s of %s, loss %.3f nats a token", step, steps, loss)

            begin = None if start is None else Path(start)
            loss = train_language_model(texts, partial, settings, on_step, tokenizer, begin)
        write_manifest(partial, {"fingerprint": name, "settings": asdict(settings), "loss": loss})
        if target.exists():
            remove_tree(target)
        move_into_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    run_logger().info("trained: %.3f nats a token; %s", loss, json.dumps(asdict(settings)))
    return folder


def _contents(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a checkpoint, by name: its manifest tells how it was made, not what is there now."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "manifest.json")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
