"""Losses of examples and queries under a model, measured in passes without gradients."""

import numpy as np
from jaxtyping import Float

from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.capture.passes import forward_losses
from dataworth.tasks.corpus.batches import batches_by_length
from dataworth.tasks.corpus.examples import CorpusExamples, Examples
from dataworth.tasks.model.plain import Model

__all__ = ["measured_losses", "query_losses"]

BATCH_TOKENS = 8192


def measured_losses(model: Model, examples: Examples, batch_tokens: int = BATCH_TOKENS) -> Float[np.ndarray, " n"]:
    """(n_examples,) float64 loss of each example, nats summed over its targets."""
    losses = np.empty(examples.n_examples)
    for numbers in batches_by_length(examples.lengths, batch_tokens, model.reading.batching):
        batch = examples.batch(numbers, model.device, model.reading.pad_token)
        losses[numbers] = forward_losses(*model.halves, *batch).double().cpu().numpy()
    return losses


def query_losses(model: Model, queries: CorpusStore) -> Float[np.ndarray, " q"]:
    """(n_queries,) float64 loss of each query, nats summed over its targets."""
    return measured_losses(model, CorpusExamples(queries))
