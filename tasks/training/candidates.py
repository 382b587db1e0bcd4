"""What documents that a model was not trained on teach it, measured by training it on them."""

import numpy as np

from dataworth.storage.coalitions import UtilityStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.layer_table import Layer
from dataworth.storage.layers import LayerStore
from dataworth.storage.locations import StoreFolders
from dataworth.storage.place import Location
from dataworth.storage.ref import StoreRef, fingerprint
from dataworth.storage.spelling import setting
from dataworth.tasks.corpus.groups import document_groups
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.keeping import kept
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.progress import progress
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.retraining import losses_after_training, window_players

__all__ = ["GAINED", "train_on_candidates"]

ALGORITHM = 1
# The only "layer" of the store, and the array in it.
GAINED = "gained"


def train_on_candidates(
    store: str, model: ModelConfig, corpus: StoreRef, queries: StoreRef, grouping: str, training: TrainingConfig
) -> StoreRef:
    """Train a model, as it is, on each source's documents alone; `gained` (s, q) nats that this took off the queries.

    The sources' names, in the order of the rows, are the attribute `names`. Each training is kept as it ends.

    Args:
        store: root of the stores.
        model: the checkpoint; it is left as it is.
        corpus: of the candidates.
        queries: one window each.
        grouping: of the documents into sources.
        training: how, with the passes to make.

    Raises:
        InputError: the weights are spread over several processes, or a training ends in losses that are no numbers.
    """
    documents, asked, loaded = CorpusStore.open(corpus), CorpusStore.open(queries), load(model)
    names = sorted(set(document_groups(documents, grouping)))
    parts = {
        "trained on candidates": ALGORITHM,
        "model": loaded.fingerprint,
        "corpus": corpus.fingerprint,
        "queries": queries.fingerprint,
        "grouping": grouping,
        "training": training.model_dump(),
    }

    def build(root: Location, name: str) -> None:
        before = query_losses(loaded, asked)
        measured = UtilityStore.create(StoreFolders(store).games, fingerprint(parts), {**parts, "players": names})
        masks, _ = measured.known(len(names), asked.n_examples)
        done = set(masks.argmax(axis=1).tolist())
        of_windows = window_players(documents, grouping, names)
        with progress("candidates", len(names), "source") as bar:
            for number in range(len(names)):
                if number not in done:
                    windows = np.flatnonzero(of_windows == number)
                    after = losses_after_training(loaded, documents, windows, asked, training)
                    if not np.isfinite(after).all():
                        raise InputError(
                            f"{setting('candidates.epochs')}: trained on {names[number]!r} the model ends with losses "
                            f"that are no numbers: lower {setting('training.learning_rate')}, or pass "
                            f"{setting('model.dtype')} float32"
                        )
                    measured.add(np.eye(len(names), dtype=bool)[number][None], -after[None])
                bar.advance(1)
        masks, utilities = measured.known(len(names), asked.n_examples)
        gained = np.empty((len(names), asked.n_examples))
        gained[masks.argmax(axis=1)] = before + utilities
        LayerStore.write(root, name, [Layer(GAINED)], [{GAINED: gained}], {**parts, "names": names})

    return kept(store, "layers", parts, "trainings on candidates", build)
