"""The training of a checkpoint from its base, as a recipe that can be gone through backwards."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.capture.losses import next_tokens
from dataworth.tasks.corpus.batches import window_targets
from dataworth.tasks.corpus.examples import CorpusExamples, Examples
from dataworth.tasks.model.loading import LoadedModel
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.optimizers import Adam, Clipping
from dataworth.tasks.training.replay import Call, Outputs, Recipe, Step
from dataworth.tasks.training.retraining import batch_parts, trained_weights
from dataworth.tasks.training.small_model import CLIPPED, learning_rates, shuffled_batches

__all__ = ["CheckpointReads", "recipe_of"]


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
