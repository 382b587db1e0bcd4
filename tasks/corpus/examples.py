"""Examples as a model reads them, batch by batch: windows of a corpus, or rows of a table that lie in memory."""

import hashlib
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.corpus.batches import IGNORED, corpus_batch, n_targets
from dataworth.tasks.corpus.draws import label_uniforms

__all__ = ["CorpusExamples", "Examples", "Part", "ShuffledLabels", "TensorExamples", "target_counts"]

Batch = tuple[Tensor, Tensor, Tensor]
# Rows are padded to the longest of them.
COUNTED_AT_ONCE = 256


@runtime_checkable
class Examples(Protocol):
    """What a method needs of training examples or of queries."""

    @property
    def n_examples(self) -> int: ...

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Tokens of each example; 1 where it is a row of a table."""

    @property
    def documents(self) -> Int[np.ndarray, " n"]:
        """Number of the document each example belongs to."""

    @property
    def n_documents(self) -> int: ...

    def batch(self, numbers: np.ndarray, device: torch.device, pad_token: int) -> Batch:
        """Inputs, mask and labels of some examples: (n, t) tokens with -100 where there is no loss, or (n,) classes.

        Args:
            numbers: of the examples.
            device: where the tensors go.
            pad_token: fills rows that are shorter than the longest (see dataworth.tasks.model.reading.Reading).
        """

    def uniforms(self, numbers: np.ndarray, labels: Tensor, draws: int, seed: int) -> Float[np.ndarray, "m p"]:
        """Numbers in [0, 1) that draw labels, each example's own whatever batch it comes in (see label_uniforms)."""


@dataclass(frozen=True)
class CorpusExamples:
    """The windows of a corpus.

    Args:
        corpus: its store.
    """

    corpus: CorpusStore

    @property
    def n_examples(self) -> int:
        return self.corpus.n_examples

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        return np.asarray(self.corpus.windows["n_tokens"])

    @property
    def documents(self) -> Int[np.ndarray, " n"]:
        return np.asarray(self.corpus.windows["document"])

    @property
    def n_documents(self) -> int:
        return self.corpus.n_documents

    def batch(self, numbers: np.ndarray, device: torch.device, pad_token: int) -> Batch:
        return corpus_batch(self.corpus, numbers, device, pad_token)

    def uniforms(self, numbers: np.ndarray, labels: Tensor, draws: int, seed: int) -> Float[np.ndarray, "m p"]:
        documents = self.corpus.windows["document"][numbers]
        return label_uniforms(
            self.corpus.contents[documents].tolist(),
            (numbers - self.corpus.first_windows[documents]).tolist(),
            n_targets(labels).tolist(),
            draws,
            seed,
        )


@dataclass(frozen=True)
class TensorExamples:
    """Rows of a table with a class each; every row is a document of its own.

    Args:
        inputs: (n, …) of the rows.
        labels: (n,) int64 classes.
    """

    inputs: Tensor
    labels: Tensor
    _contents: list[bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels):
            raise ValueError(f"{len(self.inputs)} rows need as many labels, got {len(self.labels)}")
        rows = self.inputs.contiguous().numpy()
        contents = [hashlib.sha256(row.tobytes()).digest() for row in rows]
        object.__setattr__(self, "_contents", contents)

    @property
    def n_examples(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        return np.ones(len(self.labels), np.int64)

    @property
    def documents(self) -> Int[np.ndarray, " n"]:
        return np.arange(len(self.labels))

    @property
    def n_documents(self) -> int:
        return len(self.labels)

    def batch(self, numbers: np.ndarray, device: torch.device, pad_token: int) -> Batch:
        chosen = torch.from_numpy(np.asarray(numbers))
        mask = torch.ones(len(chosen), 1, dtype=torch.int64, device=device)
        return self.inputs[chosen].to(device), mask, self.labels[chosen].to(device)

    def uniforms(self, numbers: np.ndarray, labels: Tensor, draws: int, seed: int) -> Float[np.ndarray, "m p"]:
        contents = [self._contents[number] for number in numbers]
        return label_uniforms(contents, [0] * len(contents), n_targets(labels).tolist(), draws, seed)


@dataclass(frozen=True)
class Part:
    """Some of the examples; their documents keep their numbers.

    Args:
        examples: of which.
        numbers: (n,) of those that are taken.
    """

    examples: Examples
    numbers: Int[np.ndarray, " n"]

    @property
    def n_examples(self) -> int:
        return len(self.numbers)

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        return self.examples.lengths[self.numbers]

    @property
    def documents(self) -> Int[np.ndarray, " n"]:
        return self.examples.documents[self.numbers]

    @property
    def n_documents(self) -> int:
        return self.examples.n_documents

    def batch(self, numbers: np.ndarray, device: torch.device, pad_token: int) -> Batch:
        return self.examples.batch(self.numbers[numbers], device, pad_token)

    def uniforms(self, numbers: np.ndarray, labels: Tensor, draws: int, seed: int) -> Float[np.ndarray, "m p"]:
        return self.examples.uniforms(self.numbers[numbers], labels, draws, seed)


@dataclass(frozen=True)
class ShuffledLabels:
    """The same examples with labels that teach nothing: a control.

    Classes are permuted among the examples; the targets of a window come in another order of their own.

    Args:
        examples: whose labels are shuffled.
        seed: of the permutations.
    """

    examples: Examples
    seed: int

    @property
    def n_examples(self) -> int:
        return self.examples.n_examples

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        return self.examples.lengths

    @property
    def documents(self) -> Int[np.ndarray, " n"]:
        return self.examples.documents

    @property
    def n_documents(self) -> int:
        return self.examples.n_documents

    def batch(self, numbers: np.ndarray, device: torch.device, pad_token: int) -> Batch:
        inputs, mask, labels = self.examples.batch(numbers, device, pad_token)
        if labels.dim() == 1:
            order = np.random.default_rng(self.seed).permutation(self.n_examples)
            return inputs, mask, self.examples.batch(order[numbers], device, pad_token)[2]
        shuffled = labels.clone()
        for row, number in enumerate(numbers):
            places = (labels[row] != IGNORED).nonzero()[:, 0]
            order = np.random.default_rng([self.seed, int(number)]).permutation(len(places))
            shuffled[row, places] = labels[row, places[torch.from_numpy(order).to(places.device)]]
        return inputs, mask, shuffled

    def uniforms(self, numbers: np.ndarray, labels: Tensor, draws: int, seed: int) -> Float[np.ndarray, "m p"]:
        return self.examples.uniforms(numbers, labels, draws, seed)


def target_counts(examples: Examples) -> Int[np.ndarray, " n"]:
    """Targets that carry loss of every example: tokens, or 1 of a row with a class."""
    counts = np.zeros(examples.n_examples, np.int64)
    for first in range(0, examples.n_examples, COUNTED_AT_ONCE):
        numbers = np.arange(first, min(first + COUNTED_AT_ONCE, examples.n_examples))
        counts[numbers] = n_targets(examples.batch(numbers, torch.device("cpu"), 0)[2]).numpy()
    return counts
