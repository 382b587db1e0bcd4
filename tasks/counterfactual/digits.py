"""A problem that is always at hand: a small network that reads the digits which scikit-learn brings along."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import nn
from torch.nn.functional import cross_entropy

from dataworth.storage.errors import InputError
from dataworth.storage.ref import fingerprint
from dataworth.tasks.corpus.examples import Examples, TensorExamples
from dataworth.tasks.model.plain import Model, PlainModel
from dataworth.tasks.training.optimizers import SGD, Clipping
from dataworth.tasks.training.recipes import Call, Outputs, Recipe, Step

__all__ = ["DigitsProblem", "digits"]

N_TRAINING, N_QUERIES, N_CLASSES = 1000, 100, 10
PER_SOURCE = 100
EPOCHS, BATCH, RATE, MOMENTUM, DECAY = 40, 50, 0.05, 0.9, 1e-3


@dataclass(frozen=True)
class DigitsProblem:
    """1,000 digits to train on, 100 to ask about, a network 64-64-64-10 trained by stochastic gradient descent.

    The mean loss over the examples plus DECAY / 2 times the squared length of the weights; a source is a hundred digits
    that follow one another, which come from the same few writers.

    Args:
        seeds: of the models that are audited.
    """

    seeds: tuple[int, ...] = (0,)
    title: str = field(default="digits, network 64-64-64-10")

    @property
    def fingerprint(self) -> str:
        settings = [N_TRAINING, N_QUERIES, EPOCHS, BATCH, RATE, MOMENTUM, DECAY]
        return fingerprint({"digits": 1, "settings": settings})

    @property
    def contents(self) -> str:
        return ""

    @cached_property
    def _rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        try:
            from sklearn.datasets import load_digits  # type: ignore[import-untyped]
        except ImportError:
            raise InputError("the digits are scikit-learn's: pip install scikit-learn") from None
        pixels, labels = load_digits(return_X_y=True)
        return torch.from_numpy(pixels / 16.0).float(), torch.from_numpy(labels).long()

    @cached_property
    def examples(self) -> TensorExamples:
        inputs, labels = self._rows
        return TensorExamples(inputs[:N_TRAINING], labels[:N_TRAINING])

    @cached_property
    def queries(self) -> TensorExamples:
        inputs, labels = self._rows
        return TensorExamples(inputs[-N_QUERIES:], labels[-N_QUERIES:])

    @property
    def sources(self) -> Sequence[str]:
        return [f"digits {first}-{first + PER_SOURCE - 1}" for first in range(0, N_TRAINING, PER_SOURCE) for _ in range(
            PER_SOURCE)]  # fmt: skip

    @property
    def texts(self) -> None:
        return None

    @property
    def weight_decay(self) -> float:
        return DECAY

    def models(self) -> Sequence[Model]:
        return self._models

    @cached_property
    def _models(self) -> list[Model]:
        everybody = np.ones(N_TRAINING, bool)
        return [PlainModel(self.trained(everybody, seed), N_CLASSES) for seed in self.seeds]

    def recipe(self, seed: int) -> Recipe:
        """Of the training on all digits."""
        network = _network(seed)
        batches = self._batches(N_TRAINING, seed)
        rates = [RATE * (1.0 + math.cos(math.pi * step / len(batches))) / 2.0 for step in range(len(batches))]
        return Recipe(
            model=network,
            trained=tuple(name for name, _ in network.named_parameters()),
            steps=[Step((batch.numpy(),), rate, len(batch)) for batch, rate in zip(batches, rates, strict=True)],
            examples=self.examples,
            reads=_reads,
            optimizer=SGD(MOMENTUM, DECAY),
            clipping=Clipping(None),
        )

    def _batches(self, n_members: int, seed: int) -> list[torch.Tensor]:
        """Places of the digits of every step."""
        generator = torch.Generator().manual_seed(seed)
        return [batch for _ in range(EPOCHS) for batch in torch.randperm(n_members, generator=generator).split(BATCH)]

    def trained(self, members: Bool[np.ndarray, " n"], seed: int) -> nn.Module:
        """The network after training on some of the digits; the seed is of its weights and of the order."""
        network = _network(seed)
        inputs, labels = (rows[torch.from_numpy(members)] for rows in (self.examples.inputs, self.examples.labels))
        batches = self._batches(len(labels), seed)
        optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, len(batches)))
        for batch in batches:
            optimizer.zero_grad()
            cross_entropy(network(inputs[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
        return network

    def losses_after(self, members: Bool[np.ndarray, " n"], seed: int) -> Float[np.ndarray, " q"]:
        logits = self.trained(members, seed)(self.queries.inputs).detach()
        losses: np.ndarray = cross_entropy(logits.double(), self.queries.labels, reduction="none").numpy()
        return losses


def _network(seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, N_CLASSES))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
    return network


def _reads(call: Call, examples: Examples, numbers: np.ndarray) -> Outputs:
    inputs, _, labels = examples.batch(numbers, torch.device("cpu"), 0)
    return Outputs(call(inputs), labels, torch.arange(len(labels)))


def digits() -> DigitsProblem:
    """The built-in problem, for `--audit.problem digits`."""
    return DigitsProblem()
