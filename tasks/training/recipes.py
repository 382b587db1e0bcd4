"""Trainings that can be carried out again, step by step, and that of a checkpoint from its base as one of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.capture.losses import IGNORED, next_tokens
from dataworth.tasks.corpus.batches import window_targets
from dataworth.tasks.corpus.examples import CorpusExamples, Examples
from dataworth.tasks.model.loading import LoadedModel
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.optimizers import Adam, Clipping, Optimizer
from dataworth.tasks.training.retraining import batch_parts, trained_weights
from dataworth.tasks.training.small_model import CLIPPED, learning_rates, shuffled_batches

__all__ = ["Call", "CheckpointReads", "Outputs", "Recipe", "Step", "recipe_of"]

Call = Callable[..., Any]


@dataclass(frozen=True)
class Outputs:
    """What a model says of some examples, target by target; the loss of each is its cross-entropy.

    Args:
        logits: (p, v).
        targets: (p,) of them; IGNORED where there is no loss.
        owners: (p,) place among the examples of the one each target is of.
    """

    logits: Tensor
    targets: Tensor
    owners: Tensor

    def losses(self) -> Float[Tensor, " p"]:
        """(p,) nats."""
        precise = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        return cross_entropy(precise, self.targets, ignore_index=IGNORED, reduction="none")


# What a model says, under a call of it, of some of the examples, by number.
Reads = Callable[[Call, Examples, np.ndarray], Outputs]


@dataclass(frozen=True)
class Step:
    """A step of a training.

    Args:
        parts: numbers of its examples, by what is computed at once: several where gradients are accumulated.
        rate: of learning.
        divisor: of the sum of the examples' losses.
        portions: of the step that are each example's, in the order of the parts, adding up to 1; None: equal ones.
    """

    parts: tuple[np.ndarray, ...]
    rate: float
    divisor: float
    portions: Float[np.ndarray, " b"] | None = None

    @property
    def numbers(self) -> Int[np.ndarray, " b"]:
        """Of its examples."""
        return np.concatenate(self.parts)


@dataclass(frozen=True)
class Recipe:
    """A training that can be carried out again.

    Args:
        model: where it begins; its weights are left as they are.
        trained: names of the weights that are trained, shared ones once.
        steps: in their order.
        examples: that it trains on.
        reads: what the model says of them, and of others that it is asked about.
        optimizer: of the steps.
        clipping: of their gradients.
        seed: of dropout.
    """

    model: nn.Module
    trained: tuple[str, ...]
    steps: Sequence[Step]
    examples: Examples
    reads: Reads
    optimizer: Optimizer
    clipping: Clipping
    seed: int = 0


@dataclass(frozen=True)
class CheckpointReads:
    """What a checkpoint's model says of examples.

    Args:
        device: of the model.
        pad_token: fills rows that are shorter than the longest.
    """

    device: torch.device
    pad_token: int

    def __call__(self, call: Call, examples: Examples, numbers: np.ndarray) -> Outputs:
        input_ids, attention_mask, labels = examples.batch(numbers, self.device, self.pad_token)
        logits = call(input_ids=input_ids, attention_mask=attention_mask).logits
        owners = torch.arange(len(labels), device=self.device)
        if labels.dim() == 1:
            return Outputs(logits, labels, owners)
        return Outputs(logits.flatten(0, 1), next_tokens(labels).flatten(), owners.repeat_interleave(labels.shape[1]))


def recipe_of(
    loaded: LoadedModel, corpus: CorpusStore, training: TrainingConfig, windows: Int[np.ndarray, " w"] | None = None
) -> Recipe:
    """The training of a base on a corpus, as `retraining.train` carries it out.

    Args:
        loaded: where it begins.
        corpus: that it is trained on.
        training: how.
        windows: of the corpus that are trained on; None: all.

    Raises:
        InputError: the weights are spread over several processes, or not in a type of numbers that can be trained.
    """
    if loaded.sharded:
        raise InputError(f"{setting('model.shard')}: a model spread over several processes cannot be trained again yet")
    lengths, targets = corpus.windows["n_tokens"], window_targets(corpus)
    chosen = np.arange(len(lengths)) if windows is None else windows
    batches = [chosen[batch] for batch in shuffled_batches(lengths[chosen].tolist(), training)]
    steps = []
    for batch, rate in zip(batches, learning_rates(len(batches), training.learning_rate), strict=True):
        parts = tuple(batch[part] for part in batch_parts(lengths[batch], loaded.reading.batching))
        n_targets = int(targets[batch].sum())
        portions = targets[np.concatenate(parts)] / n_targets if n_targets else None
        steps.append(Step(parts, rate, float(max(1, n_targets)), portions))
    trained = {id(weight) for weight in trained_weights(loaded.model)}
    return Recipe(
        model=loaded.model,
        trained=tuple(name for name, weight in loaded.model.named_parameters() if id(weight) in trained),
        steps=steps,
        examples=CorpusExamples(corpus),
        reads=CheckpointReads(loaded.device, loaded.reading.pad_token),
        optimizer=Adam(weight_decay=training.weight_decay),
        clipping=Clipping(CLIPPED),
        seed=training.seed,
    )
