"""The ledger of the flow's own training: a model trained on a corpus as `train` does it, with books."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.capture.losses import example_losses
from dataworth.tasks.corpus.batches import batches_by_length, corpus_batch, window_targets
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.model.loading import LoadedModel
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.ledger import Credits, Ledger
from dataworth.tasks.training.retraining import wanting_gradients
from dataworth.tasks.training.small_model import CLIPPED, learning_rates, shuffled_batches

__all__ = ["ledger_of", "summed_losses"]


def ledger_of(
    loaded: LoadedModel,
    corpus: CorpusStore,
    windows: Int[np.ndarray, " w"],
    players: Int[np.ndarray, " w"],
    n_players: int,
    queries: CorpusStore,
    training: TrainingConfig,
    every: int = 1,
    on_step: Callable[[int, int], None] = lambda *_: None,
) -> Credits:
    """Train a model, in place, as `train` does, and keep the ledger.

    Args:
        loaded: as for `train`.
        corpus, windows: of the documents.
        players: of each of these windows, from 0.
        n_players: of them all.
        queries: one window each.
        training: how.
        every: steps of an interval (see `Ledger`).
        on_step: called with (step, steps) after each step.
    """
    batches = shuffled_batches(corpus.windows["n_tokens"][windows].tolist(), training)
    model = loaded.model
    torch.manual_seed(training.seed)
    rates = learning_rates(len(batches), training.learning_rate)

    def losses() -> Iterator[Tensor]:
        for query in range(queries.n_examples):
            own = summed_losses(loaded, queries, np.array([query]), np.ones(1))
            yield sum(own, torch.zeros((), device=loaded.device))

    def measured() -> Float[np.ndarray, " q"]:
        return query_losses(loaded, queries)

    with wanting_gradients(model) as weights:
        trained = list(weights.values())
        optimizer = torch.optim.AdamW(trained, lr=training.learning_rate, weight_decay=training.weight_decay)
        ledger = Ledger(model, optimizer, losses, every=every, players=range(n_players), measured=measured)
        try:
            with ledger:
                for step, batch in enumerate(batches):
                    model.train()
                    numbers, owners = windows[batch], players[batch]
                    n_targets = max(1, int(window_targets(corpus)[numbers].sum()))
                    optimizer.zero_grad(set_to_none=True)
                    for player in np.unique(owners):
                        own = numbers[owners == player]
                        for part in summed_losses(loaded, corpus, own, corpus.windows["n_tokens"][own]):
                            ledger.backward(part / n_targets, int(player))
                    torch.nn.utils.clip_grad_norm_(trained, CLIPPED)
                    optimizer.param_groups[0]["lr"] = rates[step]
                    optimizer.step()
                    on_step(step + 1, len(batches))
        finally:
            optimizer.zero_grad(set_to_none=True)
            model.eval()
    return ledger.credits()


def summed_losses(
    loaded: LoadedModel, corpus: CorpusStore, numbers: np.ndarray, lengths: np.ndarray
) -> Iterator[Tensor]:
    """Losses of some windows, nats summed over their targets, in batches that give each text's own gradient.

    Args:
        loaded: the model.
        corpus: of the windows.
        numbers: theirs.
        lengths: (w,) tokens of each.
    """
    for part in batches_by_length(lengths, int(lengths.sum() + lengths.max() * len(lengths)), loaded.reading.batching):
        ids, mask, labels = corpus_batch(corpus, numbers[part], loaded.device, loaded.reading.pad_token)
        logits = loaded.model(input_ids=ids, attention_mask=mask).logits
        if labels.dim() == 1:
            yield cross_entropy(logits.float(), labels, reduction="sum")
        else:
            yield example_losses(logits, labels).sum()
