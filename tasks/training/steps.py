"""The steps that train the demo's model, and that go back through the training of a checkpoint."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.durable import move_into_place, remove_tree
from dataworth.storage.errors import InputError
from dataworth.storage.layer_table import Layer
from dataworth.storage.layers import LayerStore
from dataworth.storage.manifest import is_complete, read_manifest, write_manifest
from dataworth.storage.place import Location
from dataworth.storage.ref import StoreRef, fingerprint
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.corpus.examples import CorpusExamples
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.corpus.readers import read_documents
from dataworth.tasks.keeping import kept
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.progress import progress, run_logger
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.reach import RetrainedCheck
from dataworth.tasks.training.recipes import recipe_of
from dataworth.tasks.training.replay import Replay
from dataworth.tasks.training.small_model import SmallModel, train_language_model

__all__ = ["DERIVATIVES", "REPLAY", "replay_training", "train_small_model"]

REPLAY = 1
# The one layer of the store that keeps them, and their name there.
DERIVATIVES = "derivatives"


def replay_training(
    store: str, model: ModelConfig, corpus: StoreRef, queries: StoreRef, training: TrainingConfig, orders: int
) -> StoreRef:
    """Derivatives (n_queries, n_windows) of the queries' losses by the weights of the corpus' windows in the training.

    Args:
        store: root of the stores.
        model: the checkpoint, and the base that its training began from.
        corpus: that it was trained on.
        queries: one window each.
        training: how.
        orders: of the windows, by seeds from the training's own on, whose mean is taken.

    Raises:
        InputError: the training leads somewhere else than to the checkpoint; there is no base.
    """
    base = load(model, 1.0)
    documents, asked = CorpusStore.open(corpus), CorpusStore.open(queries)
    parts = {
        "replay": REPLAY,
        "base": base.fingerprint,
        "model": load(model).fingerprint,
        "windows": corpus.fingerprint,
    }
    parts |= {"corpus": documents.contents_fingerprint, "queries": queries.fingerprint}
    parts |= {"training": training.model_dump(), "orders": orders}

    def build(root: Location, name: str) -> None:
        everybody, nobody = (float(query_losses(load(model, share), asked).sum()) for share in (0.0, 1.0))
        found = np.zeros((asked.n_examples, documents.n_examples))
        for order in range(orders):
            seeded = training.model_copy(update={"seed": training.seed + order})
            recipe = recipe_of(load(model, 1.0), documents, seeded)
            with progress("replay", 2 * len(recipe.steps), "step") as bar:
                replay = Replay(recipe, on_step=bar.advance)
                bar.expect(replay.passes(asked.n_examples) * len(recipe.steps))
                if order == 0:
                    losses = replay.losses(CorpusExamples(asked))
                    check = RetrainedCheck(everybody, float(losses.sum()), nobody)
                    if check.reason:
                        raise InputError(check.reason)
                found += replay.derivatives(CorpusExamples(asked)) / orders
        attributes = {**parts, "check": check.facts()}
        LayerStore.write(root, name, [Layer(DERIVATIVES)], [{DERIVATIVES: found}], attributes)

    return kept(store, "layers", parts, "replayed training", build)


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
