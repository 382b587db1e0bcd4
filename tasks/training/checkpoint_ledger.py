"""What each player's documents taught, from the checkpoints that a training left: the ledger of who kept no books.

Between two checkpoints the weights went a way. What the documents of a player do to them is taken half-way between
both: minus the sum of their gradients, each weight's divided by the root of the mean square of what batches of all
documents do to it, as Adam divides. One factor, by least squares over all weights, makes of everybody's sum what they
account for of the way. A player took off a query's loss minus the query's gradient, half-way, times the player's
part. The rest of the way is nobody's: within an interval the documents' pushes against each other cancel, so that
here, unlike in the ledger of every step (dataworth.tasks.training.ledger), nobody is charged for what another one
repaired.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import LoadedModel, base_weights, checkpoint_weights, load
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.ledger import Credits
from dataworth.tasks.training.retraining import as_it_was, wanting_gradients
from dataworth.tasks.training.small_model import shuffled_batches
from dataworth.tasks.training.training_with_ledger import summed_losses

__all__ = ["ledger_of_checkpoints"]

# Added to the root of the mean square of each weight's gradients, as a part of its mean: some are never moved.
FLOOR = 1e-3


def ledger_of_checkpoints(
    points: Sequence[ModelConfig],
    corpus: CorpusStore,
    windows: Int[np.ndarray, " w"],
    players: Int[np.ndarray, " w"],
    n_players: int,
    queries: CorpusStore,
    training: TrainingConfig,
    on_step: Callable[[int, int], None] = lambda *_: None,
) -> Credits:
    """Credits of the way from the base through checkpoints to the model; those of others are the rest of the way's.

    Args:
        points: checkpoints in the order of the training, the model last; their base is where it began.
        corpus, windows: of the documents.
        players: of each of these windows, from 0.
        n_players: of them all.
        queries: one window each.
        training: whose batches are taken.
        on_step: called with (step, steps) after each batch and each query of each interval.

    Raises:
        InputError: a checkpoint lacks a weight of the model, or has it in another shape.
    """
    loaded = load(points[-1])
    batches = shuffled_batches(corpus.windows["n_tokens"][windows].tolist(), training.model_copy(update={"epochs": 1}))
    n_queries, done, steps = queries.n_examples, 0, len(points) * (len(batches) + queries.n_examples)

    def one_more() -> None:
        nonlocal done
        done += 1
        on_step(done, steps)

    values, others = np.zeros((n_players, n_queries)), np.zeros(n_queries)
    measured, accounted = np.zeros((len(points) + 1, n_queries)), np.zeros((len(points), n_queries))
    with as_it_was(loaded), wanting_gradients(loaded.model) as weights:
        way = _Way(loaded, weights, points)
        way.to(0.0, 0)
        measured[0] = query_losses(loaded, queries)
        for interval in range(len(points)):
            way.to(0.5, interval)
            if not way.difference.any():  # a checkpoint given twice, or the model among them
                measured[interval + 1] = measured[interval]
                continue
            sums, root = _sums(loaded, weights, corpus, windows, players, n_players, batches, one_more)
            moved = sums.div_(root).neg_()
            together, gone = moved.sum(dim=0), way.difference
            factor = float(together @ gone) / float(together @ together)
            for query in range(n_queries):
                gradient = _gradient(weights, summed_losses(loaded, queries, np.array([query]), np.ones(1)))
                values[:, query] -= factor * (moved @ gradient).double().cpu().numpy()
                accounted[interval, query] = -float(gradient @ gone)
                one_more()
            way.to(1.0, interval)
            measured[interval + 1] = query_losses(loaded, queries)
    others = accounted.sum(axis=0) - values.sum(axis=0)
    return Credits(tuple(range(n_players)), values, np.zeros(n_queries), others, measured, accounted)


class _Way:
    """The weights between one checkpoint and the next, put into a model.

    Args:
        loaded: the model.
        weights: of it, by name, that are moved.
        points: checkpoints after the base.
    """

    def __init__(self, loaded: LoadedModel, weights: dict[str, nn.Parameter], points: Sequence[ModelConfig]) -> None:
        self._weights, self._points, self._device = weights, points, loaded.device
        self._interval = 0
        self._before = self._flat(base_weights(points[0], list(weights)), str(points[0].base))
        self._after = self._of(0)

    @property
    def difference(self) -> Tensor:
        """(p,) from the one checkpoint to the next."""
        return self._after - self._before

    def to(self, share: float, interval: int) -> None:
        """A share of the way of an interval, this one or the next."""
        if interval != self._interval:
            self._before, self._after, self._interval = self._after, self._of(interval), interval
        at = torch.lerp(self._before, self._after, share)
        with torch.no_grad():
            for weight, part in zip(self._weights.values(), _parts(self._weights, at), strict=True):
                weight.copy_(part.view(weight.shape))

    def _of(self, number: int) -> Tensor:
        point = self._points[number]
        return self._flat(checkpoint_weights(point, list(self._weights)), point.name)

    def _flat(self, found: dict[str, Tensor], name: str) -> Tensor:
        for key, weight in self._weights.items():
            if found[key].shape != weight.shape:
                raise InputError(f"{setting('sources.checkpoints')} {name}: {key} has another shape than in the model")
        return torch.cat([found[key].flatten() for key in self._weights]).to(self._device)


def _parts(weights: dict[str, nn.Parameter], flat: Tensor) -> tuple[Tensor, ...]:
    return flat.split([weight.numel() for weight in weights.values()])


def _gradient(weights: dict[str, nn.Parameter], losses: Iterator[Tensor]) -> Float[Tensor, " p"]:
    """Of the sum of losses."""
    total: Tensor | None = None
    for loss in losses:
        parts = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        own = torch.cat(
            [
                torch.zeros_like(weight).flatten().float() if part is None else part.flatten().float()
                for part, weight in zip(parts, weights.values(), strict=True)
            ]
        )
        total = own if total is None else total.add_(own)
    if total is None:
        raise ValueError("a gradient of no loss")
    return total


def _sums(
    loaded: LoadedModel,
    weights: dict[str, nn.Parameter],
    corpus: CorpusStore,
    windows: Int[np.ndarray, " w"],
    players: Int[np.ndarray, " w"],
    n_players: int,
    batches: Sequence[Sequence[int]],
    one_more: Callable[[], None],
) -> tuple[Float[Tensor, "s p"], Float[Tensor, " p"]]:
    """Every player's sum of gradients, and the root of the mean square of the batches'."""
    size = sum(weight.numel() for weight in weights.values())
    sums = torch.zeros(n_players, size, device=loaded.device)
    squares = torch.zeros(size, device=loaded.device)
    for batch in batches:
        numbers, owners = windows[batch], players[batch]
        of_batch = torch.zeros(size, device=loaded.device)
        for player in np.unique(owners):
            own = numbers[owners == player]
            gradient = _gradient(weights, summed_losses(loaded, corpus, own, corpus.windows["n_tokens"][own]))
            sums[player] += gradient
            of_batch += gradient
        squares += of_batch.square_()
        one_more()
    root = squares.div_(len(batches)).sqrt_()
    return sums, root + FLOOR * root.mean()
