"""Models of coalitions that nobody trained, merged from the weights of those that were.

What a training added to the base's weights is an array like any other, and what a further coalition's would have added
is a linear combination of those that are known: the kernel ridge regression of arrays on coalitions, with

    kernel(C, D) = w(C and D) / sqrt(w(C) w(D)) + |C and D| / mean size,    w(C) = tokens of C's members

The first part averages like a soup, as trainings do whose members stand in for each other; the second adds up, as those
do that teach different things. That the loss bends is no harm: it is measured on the merged weights.

Sources: task arithmetic, Ilharco et al. 2022 (arXiv 2212.04089); model soups, Wortsman et al. 2022 (arXiv 2203.05482).
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import load as unpacked
from torch import Tensor

from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.model.loading import LoadedModel
from dataworth.tasks.training.retraining import DIFFERENCE, floating_weights

__all__ = ["MergedModels", "left_out_coefficients", "merging_coefficients", "short_of_memory"]

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
    n_weights = sum(weight.numel() for weight in floating_weights(base.model).values())
    needed = n_weights * (2 * (n_trained + 1) + 4)
    free = base.free_memory
    if needed <= free:
        return ""
    return (
        f"merging the models of {n_trained} trainings needs {needed / 1e9:.0f} GB of memory, and {free / 1e9:.0f} GB "
        "are free"
    )


class MergedModels:
    """Models that are merged of some trainings, one after another.

    Args:
        base: whose weights the differences are added to; it is as it was after every look.
        differences: of k trainings (see `packed_difference`), read one after another.
        n_trained: k.
    """

    def __init__(self, base: LoadedModel, differences: Iterable[bytes], n_trained: int) -> None:
        self._base = base
        self._weights = list(floating_weights(base.model).values())
        self._start = [weight.detach().clone() for weight in self._weights]
        n_weights = sum(weight.numel() for weight in self._weights)
        self._added = torch.empty(n_trained, n_weights, dtype=torch.bfloat16, device=self._start[0].device)
        for row, difference in zip(self._added, differences, strict=True):
            row.copy_(unpacked(difference)[DIFFERENCE])

    def losses(self, coefficients: Float[np.ndarray, "m k"], queries: CorpusStore) -> Float[np.ndarray, "m q"]:
        """Measured losses of the queries, nats; what each training counts in each model."""
        losses = []
        try:
            for row in torch.as_tensor(coefficients, dtype=torch.float32, device=self._added.device):
                self._put(row)
                losses.append(query_losses(self._base, queries))
        finally:
            for weight, start in zip(self._weights, self._start, strict=True):
                weight.data.copy_(start)
        return np.array(losses).reshape(len(coefficients), queries.n_examples)

    @torch.no_grad()
    def reach(self, coefficients: Float[np.ndarray, " k"], number: int) -> float:
        """Part of the way that a training went in the weights which a merged model goes along it.

        Args:
            coefficients: of the model.
            number: of the training, which counts nothing in the model.
        """
        chosen = torch.as_tensor(coefficients, dtype=torch.float32, device=self._added.device)
        along = length = 0.0
        for part in self._added.split(WEIGHTS_AT_ONCE, dim=1):
            added = part.float()
            along += float((chosen @ added) @ added[number])
            length += float(added[number] @ added[number])
        return along / length if length > 0 else float("nan")

    @torch.no_grad()
    def _put(self, coefficients: Tensor) -> None:
        sizes = [weight.numel() for weight in self._weights]
        for weight, start, added in zip(self._weights, self._start, self._added.split(sizes, dim=1), strict=True):
            parts = zip(start.flatten().split(WEIGHTS_AT_ONCE), added.split(WEIGHTS_AT_ONCE, dim=1), strict=True)
            merged = torch.cat([before.float() + coefficients @ more.float() for before, more in parts])
            weight.copy_(merged.view_as(weight))
