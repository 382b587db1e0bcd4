"""Models of coalitions that nobody trained, merged from the weights of those that were.

What a training added to the base's weights is an array like any other, and what a further coalition's would have added
is a linear combination of those that are known: the kernel ridge regression of arrays on coalitions, with

    kernel(C, D) = w(C and D) / sqrt(w(C) w(D)) + |C and D| / mean size,    w(C) = tokens of C's members

The first part averages like a soup, as trainings do whose members stand in for each other; the second adds up, as those
do that teach different things. That the loss bends is no harm: it is measured on the merged weights.

Sources: task arithmetic, Ilharco et al. 2022 (arXiv 2212.04089); model soups, Wortsman et al. 2022 (arXiv 2203.05482).
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import load as unpacked
from torch import Tensor, nn

from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.model.adapters import adapted_layers, adapter_weights, added_weights
from dataworth.tasks.model.loading import LoadedModel
from dataworth.tasks.training.retraining import DIFFERENCE, floating_weights

__all__ = ["ALGORITHM", "MergedModels", "left_out_coefficients", "merging_coefficients", "short_of_memory"]

ALGORITHM = 1
RIDGE = 0.01
# Weights that are merged at a time.
WEIGHTS_AT_ONCE = 2**20


def merging_coefficients(
    masks: Bool[np.ndarray, "m n"], trained: Bool[np.ndarray, "k n"], tokens: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "m k"]:
    """What the difference of each trained coalition counts in those of others.

    Args:
        masks: to be merged; nobody is the base.
        trained: different, and not nobody.
        tokens: of each member.
    """
    among = _kernel(trained, trained, tokens)
    among[np.diag_indices(len(trained))] += RIDGE * np.trace(among) / len(trained)
    found: np.ndarray = np.linalg.solve(among, _kernel(trained, masks, tokens)).T
    return found


def left_out_coefficients(
    trained: Bool[np.ndarray, "k n"], tokens: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "k k"]:
    """What the others count in each trained coalition's difference, were it not trained; 0 on the diagonal.

    Args:
        trained, tokens: as for `merging_coefficients`.
    """
    found = np.zeros((len(trained), len(trained)))
    for place in range(len(trained)):
        others = np.arange(len(trained)) != place
        found[place, others] = merging_coefficients(trained[[place]], trained[others], tokens)[0]
    return found


def _kernel(one: np.ndarray, two: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    part, both = tokens / tokens.sum(), one.astype(float) @ two.T
    lengths = np.sqrt(np.outer(one @ part, two @ part))
    common: np.ndarray = (one * part) @ two.T
    return np.divide(common, lengths, out=np.zeros_like(common), where=lengths > 0) + both / (one.shape[1] / 2)


def short_of_memory(base: LoadedModel, n_trained: int) -> str:
    """What `MergedModels` of so many trainings need and is not there, a clause; empty where it is."""
    weights = _added_to(base.model)
    kept = sum(weight.numel() * weight.element_size() for weight in weights)
    matrices = sum(weight.numel() for weight in adapter_weights(base.model).values())
    n_weights = sum(weight.numel() for weight in weights)
    # Beside those that are kept, one as it is read, and one weight as it is merged.
    added = 4 * matrices * (n_trained + 2) if matrices else 2 * n_weights * (n_trained + 3)
    needed = kept + added + 12 * max(weight.numel() for weight in weights)
    free = base.free_memory
    if needed <= free:
        return ""
    return (
        f"merging the models of {n_trained} trainings needs {needed / 1e9:.0f} GB of memory, and {free / 1e9:.0f} GB "
        "are free"
    )


def _added_to(model: nn.Module) -> list[Tensor]:
    """The weights that trainings add to: all, or those that have adapters."""
    adapted = [layer.base_layer.weight for layer in adapted_layers(model).values()]
    return adapted or list(floating_weights(model).values())


class MergedModels:
    """Models that are merged of some trainings, one after another.

    Of adapters the products of their matrices are merged, in the weights that they adapt: these are linear in what was
    added, the matrices are not.

    Args:
        base: whose weights the differences are added to; it is as it was after every look.
        differences: of k trainings (see `packed_difference`), read one after another.
        n_trained: k.
    """

    def __init__(self, base: LoadedModel, differences: Iterable[bytes], n_trained: int) -> None:
        self._base, self._n_trained = base, n_trained
        adapts = bool(adapter_weights(base.model))
        self._added: _Added = _Products(base.model) if adapts else _Arrays(base.model, n_trained)
        self._start = [weight.detach().clone() for weight in self._added.weights]
        for number, difference in enumerate(differences):
            self._added.put(number, unpacked(difference))

    def losses(self, coefficients: Float[np.ndarray, "m k"], queries: CorpusStore) -> Float[np.ndarray, "m q"]:
        """Measured losses of the queries, nats; what each training counts in each model."""
        losses = []
        try:
            for row in coefficients:
                with torch.no_grad():
                    for place, (weight, start) in enumerate(zip(self._added.weights, self._start, strict=True)):
                        weight.copy_(start.float() + self._added.combined(place, row))
                losses.append(query_losses(self._base, queries))
        finally:
            for weight, start in zip(self._added.weights, self._start, strict=True):
                weight.data.copy_(start)
        return np.array(losses).reshape(len(coefficients), queries.n_examples)

    @torch.no_grad()
    def along(self, coefficients: Float[np.ndarray, "m k"], number: int) -> Float[np.ndarray, " m"]:
        """Parts of the way that a training went in the weights which merged models go along it.

        Args:
            coefficients: of the models.
            number: of the training.
        """
        alone = np.eye(coefficients.shape[1])[number]
        products = np.zeros(len(coefficients) + 1)
        for place in range(len(self._start)):
            there = self._added.combined(place, alone).flatten()
            products[-1] += float(there @ there)
            for row, own in enumerate(coefficients):
                products[row] += float(self._added.combined(place, own).flatten() @ there)
        return products[:-1] / products[-1] if products[-1] > 0 else np.full(len(coefficients), np.nan)

    @torch.no_grad()
    def lengths(self) -> Float[np.ndarray, " k"]:
        """How far each training went in the weights."""
        squares = np.zeros(self._n_trained)
        for number, alone in enumerate(np.eye(self._n_trained)):
            parts = (self._added.combined(place, alone) for place in range(len(self._start)))
            squares[number] = sum(float(part.square().sum()) for part in parts)
        return np.sqrt(squares)


class _Added(Protocol):
    """What trainings added to some weights of a model."""

    @property
    def weights(self) -> list[Tensor]: ...

    def put(self, number: int, content: dict[str, Tensor]) -> None: ...

    def combined(self, place: int, coefficients: np.ndarray) -> Tensor:
        """Of one of the weights, of its shape, float32: the sum over trainings with these coefficients."""


class _Arrays:
    """All weights, added to by one array a training."""

    def __init__(self, model: nn.Module, n_trained: int) -> None:
        self.weights = _added_to(model)
        self._ends = np.cumsum([0, *(weight.numel() for weight in self.weights)])
        shape = n_trained, int(self._ends[-1])
        self._added = torch.empty(shape, dtype=torch.bfloat16, device=self.weights[0].device)

    def put(self, number: int, content: dict[str, Tensor]) -> None:
        self._added[number].copy_(content[DIFFERENCE])

    def combined(self, place: int, coefficients: np.ndarray) -> Tensor:
        chosen = torch.as_tensor(coefficients, dtype=torch.float32, device=self._added.device)
        added = self._added[:, self._ends[place] : self._ends[place + 1]]
        parts = [chosen @ part.float() for part in added.split(WEIGHTS_AT_ONCE, dim=1)]
        return torch.cat(parts).view_as(self.weights[place])


class _Products:
    """Weights with adapters, added to by the products of each training's matrices."""

    def __init__(self, model: nn.Module) -> None:
        layers = adapted_layers(model)
        self._names, self._layers = list(layers), list(layers.values())
        self.weights = _added_to(model)
        self._matrices: list[dict[str, Tensor]] = []

    def put(self, number: int, content: dict[str, Tensor]) -> None:
        self._matrices.append(content)

    def combined(self, place: int, coefficients: np.ndarray) -> Tensor:
        layer, weight = self._layers[place], self.weights[place]
        found = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for coefficient, content in zip(coefficients, self._matrices, strict=True):
            if coefficient:
                found.add_(added_weights(layer, _of_layer(content, self._names[place])), alpha=float(coefficient))
        return found


def _of_layer(content: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Matrices of a layer, by which of both they are."""
    own = {key.removeprefix(f"{name}."): tensor for key, tensor in content.items() if key.startswith(f"{name}.")}
    return {key.split(".")[0]: tensor for key, tensor in own.items()}
