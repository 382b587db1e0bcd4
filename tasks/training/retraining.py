"""A model trained again, from where its training began, on some documents and no others."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save as packed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dataworth.storage.coalitions import UtilityStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.locations import location_of
from dataworth.storage.ref import StoreRef
from dataworth.storage.spelling import setting
from dataworth.tasks.capture.losses import IGNORED, next_tokens
from dataworth.tasks.corpus.batches import batches_by_length, corpus_batch
from dataworth.tasks.corpus.groups import document_groups
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.model.adapters import adapter_weights
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import LoadedModel, load
from dataworth.tasks.model.reading import Batching
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.small_model import shuffled_batches, train_steps

__all__ = [
    "DIFFERENCE",
    "Retrained",
    "as_it_was",
    "batch_parts",
    "floating_weights",
    "losses_after_training",
    "packed_difference",
    "train",
    "trained_weights",
    "wanting_gradients",
    "window_players",
]

DIFFERENCE = "difference"


@dataclass(frozen=True)
class Retrained:
    """Losses of the queries after training on coalitions of sources; what a worker of a cluster is sent.

    Args:
        model: the checkpoint, and the base that every training begins from.
        corpus: the documents.
        queries: one window each.
        grouping: of the documents into players.
        names: of the players, in their order.
        training: how.
        weights: place of a UtilityStore that is to keep what each training made of the weights; None: none is.
    """

    model: ModelConfig
    corpus: StoreRef
    queries: StoreRef
    grouping: str
    names: tuple[str, ...]
    training: TrainingConfig
    weights: str | None = None

    def __call__(self, masks: Bool[np.ndarray, "m s"]) -> Float[np.ndarray, "m q"]:
        """(m, n_queries) nats, a training for each coalition.

        Raises:
            InputError: there is no base, or the weights are spread over several processes.
        """
        loaded, corpus, queries = load(self.model, 1.0), CorpusStore.open(self.corpus), CorpusStore.open(self.queries)
        of_windows = window_players(corpus, self.grouping, self.names)
        losses = []
        for mask in np.asarray(masks, bool):
            chosen = np.flatnonzero((of_windows >= 0) & mask[of_windows])
            with as_it_was(loaded) as before:
                train(loaded, corpus, chosen, self.training)
                if self.weights is not None:
                    UtilityStore(location_of(self.weights)).add_weights(mask, packed_difference(loaded.model, before))
                losses.append(query_losses(loaded, queries))
        return np.array(losses).reshape(len(losses), queries.n_examples)


def losses_after_training(
    base: LoadedModel, corpus: CorpusStore, windows: np.ndarray, queries: CorpusStore, training: TrainingConfig
) -> Float[np.ndarray, " q"]:
    """(n_queries,) nats after training on some windows; the base is as it was afterwards.

    Args:
        base: where training begins.
        corpus: of the windows.
        windows: their numbers.
        queries: one window each.
        training: how.
    """
    with as_it_was(base):
        train(base, corpus, windows, training)
        return query_losses(base, queries)


def train(loaded: LoadedModel, corpus: CorpusStore, windows: np.ndarray, training: TrainingConfig) -> list[float]:
    """Train a model on some windows of a corpus, in place.

    Args:
        loaded: of its weights those are trained that `trained_weights` names.
        corpus: of the windows.
        windows: their numbers; none: nothing changes.
        training: how.

    Returns:
        Mean loss over the targets of each step, nats.
    """
    if loaded.sharded:
        raise InputError(f"{setting('model.shard')}: a model spread over several processes cannot be trained again yet")
    batches = shuffled_batches(corpus.windows["n_tokens"][windows].tolist(), training)
    model = loaded.model
    torch.manual_seed(training.seed)

    def predicted(numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Logits (p, v) and targets (p,) of some windows; targets without loss are IGNORED."""
        batch = corpus_batch(corpus, numbers, loaded.device, loaded.reading.pad_token)
        input_ids, attention_mask, labels = batch
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits.float()
        targets = labels if labels.dim() == 1 else next_tokens(labels)
        return logits.flatten(0, -2), targets.flatten()

    def loss_of(step: int) -> Tensor:
        numbers = windows[batches[step]]
        parts = batch_parts(corpus.windows["n_tokens"][numbers], loaded.reading.batching)
        logits, targets = zip(*(predicted(numbers[part]) for part in parts), strict=True)
        return cross_entropy(torch.cat(logits), torch.cat(targets), ignore_index=IGNORED)

    with wanting_gradients(model) as weights:
        model.train()
        try:
            return train_steps(weights.values(), len(batches), loss_of, training)
        finally:
            model.eval()


def batch_parts(lengths: Int[np.ndarray, " b"], batching: Batching) -> list[np.ndarray]:
    """Positions of a step's windows by what a model can read at once: all of them where it may be padded.

    Args:
        lengths: (b,) tokens of each.
        batching: what may be in one batch (see dataworth.tasks.model.reading.Reading).
    """
    if batching == "padded":
        return [np.arange(len(lengths))]
    return batches_by_length(lengths, int(lengths.sum()), batching)


def window_players(corpus: CorpusStore, grouping: str, names: Sequence[str]) -> Int[np.ndarray, " w"]:
    """Number of the player that each window of a corpus is of; -1 of nobody's.

    Args:
        corpus: of the windows.
        grouping: of the documents into players.
        names: of the players, in their order.
    """
    numbers = {name: number for number, name in enumerate(names)}
    players = np.array([numbers.get(name, -1) for name in document_groups(corpus, grouping)])
    of_windows: np.ndarray = players[corpus.windows["document"]]
    return of_windows


def trained_weights(model: nn.Module) -> list[nn.Parameter]:
    """Of the weights those that want a gradient; where none does, those of adapters; without these, all."""
    chosen = [weight for weight in model.parameters() if weight.requires_grad] or list(adapter_weights(model).values())
    return chosen or [weight for weight in model.parameters() if weight.is_floating_point()]


@contextmanager
def wanting_gradients(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """`trained_weights` by name, which want gradients in the block and as before after it."""
    chosen = {id(weight) for weight in trained_weights(model)}
    named = {name: weight for name, weight in model.named_parameters() if id(weight) in chosen}
    wants = {name: weight.requires_grad for name, weight in named.items()}
    for weight in named.values():
        weight.requires_grad_(True)
    try:
        yield named
    finally:
        for name, weight in named.items():
            weight.requires_grad_(wants[name])


def floating_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name, shared ones once, in the model's order."""
    return {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}


def packed_difference(model: nn.Module, before: Mapping[str, Tensor]) -> bytes:
    """What a training added to the weights, as safetensors has it: one array in bfloat16; of adapters their matrices.

    Args:
        model: after the training.
        before: the weights by name, before it.
    """
    adapters = adapter_weights(model)
    if adapters:
        return packed({name: weight.detach().float().cpu().contiguous() for name, weight in adapters.items()})
    added = (weight.detach() - before[name] for name, weight in floating_weights(model).items())
    return packed({DIFFERENCE: torch.cat([part.to(torch.bfloat16).flatten().cpu() for part in added])})


@contextmanager
def as_it_was(loaded: LoadedModel) -> Iterator[dict[str, Tensor]]:
    """The model's weights and buffers, by name; they are put back when the block ends."""
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    try:
        yield before
    finally:
        loaded.model.load_state_dict(before)
