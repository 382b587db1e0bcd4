"""Models of coalitions that nobody trained, merged from the weights of those that were.

What a training added to the base's weights is an array like any other, and what a further coalition's would have added
is a linear combination of those that are known: the kernel ridge regression of arrays on coalitions, with

    kernel(C, D) = w(C and D) / sqrt(w(C) w(D)) + |C and D| / mean size,    w(C) = tokens of C's members

The first part averages like a soup, as trainings do whose members stand in for each other; the second adds up, as those
do that teach different things. That the loss bends is no harm: it is measured on the merged weights.

Sources: task arithmetic, Ilharco et al. 2022 (arXiv 2212.04089); model soups, Wortsman et al. 2022 (arXiv 2203.05482).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import load as unpacked
from torch import Tensor

from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.model.loading import LoadedModel
from dataworth.tasks.training.retraining import DIFFERENCE, as_it_was, floating_weights

__all__ = ["bytes_of_merging", "left_out_coefficients", "merged_losses", "merging_coefficients"]

RIDGE = 0.01
# Weights that are merged at a time, of models whose losses are measured one after another.
WEIGHTS_AT_ONCE = 2**20
MODELS_AT_ONCE = 4


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


def bytes_of_merging(loaded: LoadedModel, n_trained: int) -> int:
    """Memory that `merged_losses` needs beside the model."""
    n_weights = sum(weight.numel() for weight in floating_weights(loaded.model).values())
    return n_weights * (2 * (n_trained + 1) + 4 * (MODELS_AT_ONCE + 2))


def merged_losses(
    base: LoadedModel,
    differences: Iterable[bytes],
    coefficients: Float[np.ndarray, "m k"],
    queries: CorpusStore,
    measured: Callable[[np.ndarray, np.ndarray], None],
) -> None:
    """Measure the queries' losses of merged models; the base is as it was afterwards.

    Args:
        base: whose weights the differences are added to.
        differences: of k trainings (see `packed_difference`), read one after another.
        coefficients: of each model.
        queries: one window each.
        measured: called with the numbers of some models and their (models, n_queries) losses, nats.
    """
    weights = list(floating_weights(base.model).values())
    start = torch.cat([weight.detach().float().flatten() for weight in weights])
    added = torch.empty(coefficients.shape[1], len(start), dtype=torch.bfloat16, device=start.device)
    for row, difference in zip(added, differences, strict=True):
        row.copy_(unpacked(difference)[DIFFERENCE])
    with as_it_was(base):
        for first in range(0, len(coefficients), MODELS_AT_ONCE):
            part = coefficients[first : first + MODELS_AT_ONCE]
            losses = []
            for model in _merged(start, added, torch.as_tensor(part, dtype=torch.float32, device=start.device)):
                _put(model, weights)
                losses.append(query_losses(base, queries))
            measured(np.arange(first, first + len(part)), np.array(losses))


@torch.no_grad()
def _merged(start: Tensor, added: Tensor, coefficients: Tensor) -> Iterator[Tensor]:
    """(p,) weights of each row of coefficients."""
    models = start.repeat(len(coefficients), 1)
    for first in range(0, len(start), WEIGHTS_AT_ONCE):
        columns = slice(first, first + WEIGHTS_AT_ONCE)
        models[:, columns] += coefficients @ added[:, columns].float()
    yield from models


@torch.no_grad()
def _put(model: Tensor, weights: Sequence[Tensor]) -> None:
    for weight, values in zip(weights, model.split([weight.numel() for weight in weights]), strict=True):
        weight.copy_(values.view_as(weight))
