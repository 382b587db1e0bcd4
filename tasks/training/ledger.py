"""The ledger of a training: what each player's documents took off the loss of each query, step by step.

With its second moments as they were, a step of AdamW is linear in the gradients of the examples, so that every player
has a first moment, and with it a part of the step, of its own. By the midpoint rule the fall of a query's loss is

    L(theta_k) - L(theta_(k+1)) = - grad L((theta_k + theta_(k+1)) / 2) . (sum of the players' parts + decay)

up to the third order of the step, and each player is credited with its own term. The parts add up to what was measured,
over any grouping; who is split in two gets the same, and copies in one batch share. It is no counterfactual: a player
that pushes the loss up is charged in full, and those are credited who repair it.

Sources: In-Run Data Shapley, Wang et al. 2024 (arXiv 2406.11011); Loss Change Allocation, Lan et al. 2019 (arXiv
1909.01440).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

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
from dataworth.tasks.training.retraining import trained_weights
from dataworth.tasks.training.small_model import CLIPPED, learning_rates, shuffled_batches

__all__ = ["Ledger", "ledger_of"]


@dataclass(frozen=True)
class Ledger:
    """What a training came to.

    Args:
        values: (n_players, q) nats that each took off each query's loss.
        decay: (q,) nats that weight decay took off it.
        measured: (k + 1, q) losses of the queries before the first step and after every interval of steps.
        accounted: (k, q) sums of what players and decay are credited with in each interval.
    """

    values: np.ndarray
    decay: np.ndarray
    measured: np.ndarray
    accounted: np.ndarray

    @property
    def fall(self) -> Float[np.ndarray, " q"]:
        """Nats that the training took off each query, measured."""
        return np.asarray(self.measured[0] - self.measured[-1])

    @property
    def missed(self) -> float:
        """What is accounted for less what was measured, of all queries together, as a part of what was measured."""
        fall = float(self.fall.sum())
        return float(self.accounted.sum() - fall) / fall if fall else float("nan")


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
) -> Ledger:
    """Train a model, in place, as `train` does, and keep the ledger.

    Memory beside the training: two copies of the trained weights for every player, and one for every player in a batch.
    Time: a gradient of every query for each interval of steps.

    Args:
        loaded: as for `train`.
        corpus, windows: of the documents.
        players: of each of these windows, from 0.
        n_players: of them all.
        queries: one window each.
        training: how.
        every: steps of an interval; a longer one costs less, and the midpoint rule misses more.
        on_step: called with (step, steps) after each step.
    """
    batches = shuffled_batches(corpus.windows["n_tokens"][windows].tolist(), training)
    model = loaded.model
    wants = [(weight, weight.requires_grad) for weight in model.parameters()]
    trained = trained_weights(model)
    for weight in trained:
        weight.requires_grad_(True)
    torch.manual_seed(training.seed)
    book = _Book(trained, n_players, training, len(batches))
    measured, values, decays = [query_losses(loaded, queries)], [], []
    try:
        for step, batch in enumerate(batches):
            numbers, owners = windows[batch], players[batch]
            model.train()
            book.step(_player_gradients(loaded, trained, corpus, numbers, owners))
            if (step + 1) % every == 0 or step + 1 == len(batches):
                model.eval()
                by_player = book.credited(loaded, queries)
                values.append(by_player[:-1])
                decays.append(by_player[-1])
                measured.append(query_losses(loaded, queries))
            on_step(step + 1, len(batches))
    finally:
        model.eval()
        for weight, wanted in wants:
            weight.requires_grad_(wanted)
    n_queries = queries.n_examples
    credited_to = np.array(values).reshape(-1, n_players, n_queries)
    decayed = np.array(decays).reshape(-1, n_queries)
    return Ledger(
        values=credited_to.sum(axis=0),
        decay=decayed.sum(axis=0),
        measured=np.array(measured),
        accounted=credited_to.sum(axis=1) + decayed,
    )


class _Book:
    """AdamW, with a first moment for every player, and what each has moved since the last interval ended.

    Args:
        trained: weights, which it moves.
        n_players: of them.
        training: rate, decay.
        n_steps: of the training.
    """

    def __init__(self, trained: Sequence[Tensor], n_players: int, training: TrainingConfig, n_steps: int) -> None:
        self._trained, self._n_players = list(trained), n_players
        self._rates = learning_rates(n_steps, training.learning_rate)
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=training.learning_rate, weight_decay=training.weight_decay
        )
        self._steps = 0
        self._moments = [_precise_zeros(n_players, weight) for weight in self._trained]
        self._moved = [_precise_zeros(n_players + 1, weight) for weight in self._trained]
        self._start = [weight.detach().clone() for weight in self._trained]

    @torch.no_grad()
    def step(self, gradients: dict[int, list[Tensor | None]]) -> None:
        """One step on the sum of the players' gradients, clipped to norm 1."""
        (group,) = self._optimizer.param_groups
        group["lr"] = rate = self._rates[self._steps]
        for number, weight in enumerate(self._trained):
            parts = [part for each in gradients.values() if (part := each[number]) is not None]
            weight.grad = torch.stack(parts).sum(dim=0) if parts else None
        norm = torch.nn.utils.clip_grad_norm_(self._trained, CLIPPED)
        factor = min(1.0, float(CLIPPED / (norm + 1e-6)))
        beta1, beta2 = group["betas"]
        self._steps += 1
        before = [weight.detach().clone() for weight in self._trained] if group["weight_decay"] else []
        self._optimizer.step()
        for number, weight in enumerate(self._trained):
            if weight.grad is None:  # AdamW leaves it as it is, moments and all
                continue
            moments = self._moments[number].mul_(beta1)
            for player, each in gradients.items():
                own = each[number]
                if own is not None:
                    moments[player].add_(own.to(moments), alpha=(1 - beta1) * factor)
            state = self._optimizer.state[weight]
            n_steps = int(state["step"])
            first, second = 1 - beta1**n_steps, 1 - beta2**n_steps
            spread = (state["exp_avg_sq"].to(moments).sqrt() / second**0.5).add_(group["eps"])
            self._moved[number][:-1].sub_(moments / spread, alpha=rate / first)
            if before:
                self._moved[number][-1].sub_(before[number].to(moments), alpha=rate * group["weight_decay"])
        self._optimizer.zero_grad(set_to_none=True)

    def credited(self, loaded: LoadedModel, queries: CorpusStore) -> Float[np.ndarray, "p q"]:
        """(n_players + 1, q) credits of the interval that ends here, decay last; then a new one begins."""
        with _Halfway(self._trained, self._start, self._moved):
            credits = [
                self._credits(_gradient(self._trained, _losses(loaded, queries, np.array([query]), np.ones(1))))
                for query in range(queries.n_examples)
            ]
        return np.array(credits).T

    @torch.no_grad()
    def _credits(self, gradient: Sequence[Tensor | None]) -> Float[np.ndarray, " p"]:
        """(n_players + 1,) nats that each player, and decay as the last, took off a loss with this gradient."""
        total = np.zeros(self._n_players + 1)
        for moved, own in zip(self._moved, gradient, strict=True):
            if own is not None:
                total -= (moved.flatten(1) @ own.flatten().to(moved)).cpu().double().numpy()
        return total


class _Halfway:
    """The weights at the middle of an interval while the block lasts."""

    def __init__(self, trained: Sequence[Tensor], start: list[Tensor], moved: list[Tensor]) -> None:
        self._trained, self._start, self._moved = trained, start, moved
        self._end: list[Tensor] = []

    @torch.no_grad()
    def __enter__(self) -> None:
        self._end = [weight.detach().clone() for weight in self._trained]
        for weight, start in zip(self._trained, self._start, strict=True):
            weight.lerp_(start, 0.5)

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for weight, start, end, moved in zip(self._trained, self._start, self._end, self._moved, strict=True):
            weight.copy_(end)
            start.copy_(end)
            moved.zero_()


def _precise_zeros(count: int, weight: Tensor) -> Tensor:
    """(count, …) of a weight's shape and device, in float32 at least."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return torch.zeros(count, *weight.shape, dtype=dtype, device=weight.device)


def _player_gradients(
    loaded: LoadedModel, trained: Sequence[Tensor], corpus: CorpusStore, numbers: np.ndarray, owners: np.ndarray
) -> dict[int, list[Tensor | None]]:
    """Of each player in a batch, its part of the gradient of the mean loss over the batch's targets."""
    windows = corpus.windows
    n_targets = max(1, int(window_targets(windows)[numbers].sum()))
    gradients = {}
    for player in np.unique(owners):
        own = numbers[owners == player]
        parts = (part / n_targets for part in _losses(loaded, corpus, own, windows["n_tokens"][own]))
        gradients[int(player)] = _gradient(trained, parts)
    return gradients


def _gradient(trained: Sequence[Tensor], losses: Iterable[Tensor]) -> list[Tensor | None]:
    """Of the sum of some losses, one after another, so that one graph exists at a time."""
    total: list[Tensor | None] = [None] * len(trained)
    for loss in losses:
        for number, own in enumerate(torch.autograd.grad(loss, list(trained), allow_unused=True)):
            before = total[number]
            if own is not None:
                total[number] = own if before is None else before.add_(own)
    return total


def _losses(loaded: LoadedModel, corpus: CorpusStore, numbers: np.ndarray, lengths: np.ndarray) -> Iterator[Tensor]:
    """Losses of some windows, nats summed over their targets, in batches that give each text's own gradient."""
    for part in batches_by_length(lengths, int(lengths.sum() + lengths.max() * len(lengths)), loaded.reading.batching):
        ids, mask, labels = corpus_batch(corpus, numbers[part], loaded.device, loaded.reading.pad_token)
        logits = loaded.model(input_ids=ids, attention_mask=mask).logits
        if labels.dim() == 1:
            yield cross_entropy(logits.float(), labels, reduction="sum")
        else:
            yield example_losses(logits, labels).sum()
