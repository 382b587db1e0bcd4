"""What a method has to beat: similar words, similar hidden states, the size of an example or source, and chance.

The dot product and the cosine of gradients are no classes of their own: they are LoGra (attribution/logra.py) with
curvature `none` and kind `dot` or `cosine`.
"""

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import bm25s
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from dataworth.tasks.attribution.attributor import Attributor, Scorer, SingleModelAttributor
from dataworth.tasks.attribution.rows import BATCH_TOKENS
from dataworth.tasks.corpus.batches import batches_by_length
from dataworth.tasks.corpus.examples import Examples, target_counts
from dataworth.tasks.model.plain import Model

__all__ = [
    "EmbeddingSimilarity",
    "ModelFreeBaseline",
    "RandomScores",
    "TargetCount",
    "bm25_scores",
    "embeddings",
    "first_rate",
    "source_sums",
]

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it is at DEBUG by itself, and writes into a run's log


class EmbeddingSimilarity(SingleModelAttributor):
    """Cosine of the examples' embeddings, which tells likeness and not influence: it is not in nats.

    See `embeddings`.
    """

    def scorer(self, model: Model, examples: Examples) -> Scorer:
        """Embed the examples."""
        taught = _directions(embeddings(model, examples))

        def scores(queries: Examples) -> Float[np.ndarray, "q n"]:
            return _directions(embeddings(model, queries)) @ taught.T

        return scores


@torch.no_grad()
def embeddings(model: Model, examples: Examples) -> Float[np.ndarray, "n d"]:
    """One vector an example, float64: the mean over its tokens of a checkpoint's last hidden states, padding excepted.

    Of any other torch module what its last tracked layer reads, a row an example.

    Args:
        model: the checkpoint.
        examples: to embed.

    Raises:
        ValueError: the last tracked layer of a module reads no single row an example.
    """
    inner = next((module for module in model.model.modules() if isinstance(module, PreTrainedModel)), None)
    embedded: list[np.ndarray] = []
    batches = batches_by_length(examples.lengths, BATCH_TOKENS, model.reading.batching)
    for numbers in batches:
        inputs, mask, _ = examples.batch(numbers, model.device, model.reading.pad_token)
        vectors = _read_by_last_layer(model, inputs, mask) if inner is None else _mean_state(inner, inputs, mask)
        embedded.append(vectors.double().cpu().numpy())
    return np.concatenate(embedded)[np.argsort(np.concatenate(batches))]


def _mean_state(model: PreTrainedModel, inputs: Tensor, mask: Tensor) -> Tensor:
    states = model.base_model(input_ids=inputs, attention_mask=mask).last_hidden_state
    weights = mask[..., None].to(states.dtype)
    mean: Tensor = (states * weights).sum(dim=1) / weights.sum(dim=1)
    return mean


def _read_by_last_layer(model: Model, inputs: Tensor, mask: Tensor) -> Tensor:
    with _inputs_of(model.layers[-1].module) as read:
        model.halves.body(inputs, mask)
    if len(read) != 1 or read[0].dim() != 2 or len(read[0]) != len(inputs):
        shapes = [tuple(tensor.shape) for tensor in read]
        raise ValueError(f"expected layer {model.layers[-1].name} to read one row an example, got {shapes}")
    return read[0]


@contextmanager
def _inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """What the module reads while the block lasts."""
    read: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        read.append(inputs[0])

    handle = module.register_forward_pre_hook(keep)
    try:
        yield read
    finally:
        handle.remove()


def _directions(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Vectors of length 1; one of length zero stays, and is like nothing."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


class ModelFreeBaseline(Attributor):
    """A baseline that looks at no model."""

    def __init__(self) -> None:
        self._examples: Examples | None = None

    def fit(self, models: Sequence[Model], examples: Examples) -> "ModelFreeBaseline":
        """Remember the examples."""
        self._examples = examples
        return self

    def score(self, queries: Examples) -> Float[np.ndarray, "q n"]:
        """Scores of the examples for so many queries."""
        if self._examples is None:
            raise ValueError("fit the method before it scores")
        return self.scores(queries.n_examples, self._examples)

    @abstractmethod
    def scores(self, n_queries: int, examples: Examples) -> Float[np.ndarray, "q n"]:
        """(n_queries, n_examples) scores."""


class TargetCount(ModelFreeBaseline):
    """Size: the number of an example's target tokens, the same for every query; 1 of a row with a class."""

    def scores(self, n_queries: int, examples: Examples) -> Float[np.ndarray, "q n"]:
        """Counts, not nats."""
        return np.tile(target_counts(examples).astype(np.float64), (n_queries, 1))


class RandomScores(ModelFreeBaseline):
    """Standard normal numbers: a control, of which nothing should be right.

    Args:
        seed: of the numbers.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def scores(self, n_queries: int, examples: Examples) -> Float[np.ndarray, "q n"]:
        """The same numbers for the same seed and shape."""
        return np.random.default_rng(self.seed).standard_normal((n_queries, examples.n_examples))


def bm25_scores(documents: Sequence[str], queries: Sequence[str]) -> Float[np.ndarray, "q n"]:
    """BM25 of every document for every query (Robertson et al.; Lucene's variant, k1 = 1.5, b = 0.75).

    Args:
        documents: their texts.
        queries: their texts.
    """
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(list(documents), stopwords="en", show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(list(queries), stopwords="en", show_progress=False, return_ids=False)
    return np.stack([np.asarray(retriever.get_scores(query), np.float64) for query in tokens])


def source_sums(
    scores: Float[np.ndarray, "q n"], sources: Sequence[str], names: Sequence[str]
) -> Float[np.ndarray, "q s"]:
    """Scores added up by source.

    Args:
        scores: of documents.
        sources: source of each document.
        names: the sources, in the order of the columns.
    """
    place = {name: number for number, name in enumerate(names)}
    sums = np.zeros((len(scores), len(names)))
    np.add.at(sums.T, [place[source] for source in sources], scores.T)
    return sums


def first_rate(values: Float[np.ndarray, "q s"], names: Sequence[str], own: Sequence[str]) -> float:
    """Share of queries whose own source has the largest value; ties go to the first name."""
    first = np.argmax(values, axis=1)
    return float(np.mean([names[number] == source for number, source in zip(first, own, strict=True)]))
