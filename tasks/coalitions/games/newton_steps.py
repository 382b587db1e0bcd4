"""The newton game: the parameters a coalition would have reached by training without the others.

    Delta_C = (sum over s in C of H_s + lambda I)^-1 sum over s not in C of g_s,      per layer

with g_s and H_s the sums over a source's examples of the gradient of the loss and of its curvature at the trained
parameters theta*, and lambda the pull of training towards theta_0, where it began. Exact where the loss is quadratic.
Endpoint matching: training never quite converges, so that the sum of g_s is not lambda (theta_0 - theta*); the rest r
is taken off every source by its number of examples, and Delta is then 0 for everybody and theta_0 - theta* for nobody.
A source that takes part to a degree w has w H_s among the members' and (1 - w) g_s among the others'.
Source: this project's own; the step of one removal is that of Koh & Liang 2017 (arXiv 1703.04730).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from dataworth.tasks.coalitions.estimation.designs import Coalitions

__all__ = ["LayerSums", "NewtonSteps", "endpoint_matched", "estimated_damping"]

# Entries of the curvatures held at a time: 2^24 in float64 are 128 MB.
MAX_ENTRIES = 2**24
# An addition costs about ten times what one term of a matrix product does.
FEW_CHANGES = 0.05
# Pulls that are tried, as parts of the largest eigenvalue.
SMALLEST_PULL, LARGEST_PULL, N_PULLS = 1e-10, 1e3, 131


@dataclass(frozen=True)
class LayerSums:
    """Sums over the examples of each source, of one layer, in coordinates whose basis is orthonormal.

    Args:
        gradients: (n_sources, k) float64, of the training loss.
        curvatures: (n_sources, k, k) float64, positive semi-definite.
    """

    gradients: np.ndarray
    curvatures: np.ndarray


def estimated_damping(layers: Sequence[LayerSums], origin: Sequence[np.ndarray]) -> float:
    """lambda with which a step from theta_0 ends nearest to theta*: least |(H + lambda I)^-1 (sum g_s - lambda d)|.

    d = theta_0 - theta*. Where training converged, sum g_s = lambda d and this is the lambda of the training. Where it
    stopped early or an adaptive optimizer took the steps, a pull that balances the gradient itself,
    <sum g_s, d> / |d|^2, is too weak by far: it says nothing of the directions in which training had no time to move.

    Args:
        layers: of a model.
        origin: (k,) d of each layer.

    Returns:
        lambda, in nats by squared parameter, of the summed loss; 0 where no pull brings the step nearer than none.
    """
    eigenvalues, gradients, ways = [], [], []
    for layer, start in zip(layers, origin, strict=True):
        spectrum, vectors = np.linalg.eigh(layer.curvatures.sum(axis=0))
        eigenvalues.append(np.maximum(spectrum, 0.0))
        gradients.append(layer.gradients.sum(axis=0) @ vectors)
        ways.append(start @ vectors)
    h, g, d = (np.concatenate(parts) for parts in (eigenvalues, gradients, ways))

    def missed(log_pull: float) -> float:
        pull = np.exp(log_pull)
        return float((((g - pull * d) / (h + pull)) ** 2).sum())

    largest = float(h.max(initial=0.0))
    if largest == 0 or not d.any():
        return 0.0
    grid = np.log(np.geomspace(SMALLEST_PULL * largest, LARGEST_PULL * largest, N_PULLS))
    best = int(np.argmin([missed(point) for point in grid]))
    if best == len(grid) - 1:
        return 0.0
    between = (grid[max(best - 1, 0)], grid[best + 1])
    return float(np.exp(minimize_scalar(missed, bounds=between, method="bounded", options={"xatol": 1e-10}).x))


def endpoint_matched(
    layers: Sequence[LayerSums], origin: Sequence[np.ndarray], n_examples: np.ndarray, damping: float
) -> list[LayerSums]:
    """The same sums with g_s - (n_s / N) r, r = sum of g_s - lambda (theta_0 - theta*).

    Args:
        layers, origin: as in `estimated_damping`.
        n_examples: (n_sources,) of each source.
        damping: lambda.
    """
    parts = (n_examples / n_examples.sum())[:, None]
    return [
        LayerSums(layer.gradients - parts * (layer.gradients.sum(axis=0) - damping * start), layer.curvatures)
        for layer, start in zip(layers, origin, strict=True)
    ]


class NewtonSteps:
    """Delta_C of any coalitions.

    Args:
        layers: sums by source, endpoint-matched where theta_0 is known.
        damping: lambda > 0, of every layer.
        largest: no coalition goes farther than this from theta* (trust region: |Delta| over all layers); None: free.
    """

    def __init__(self, layers: Sequence[LayerSums], damping: float, largest: float | None = None) -> None:
        self._layers = list(layers)
        self._damping, self._largest = damping, largest
        self.n_columns = sum(layer.gradients.shape[1] for layer in layers)

    def __call__(self, masks: Coalitions) -> Float[np.ndarray, "m d"]:
        """(m, D) steps from theta*, layers side by side."""
        steps = np.concatenate([self._layer_steps(layer, masks) for layer in self._layers], axis=1)
        return steps * self.shortening((steps**2).sum(axis=1, keepdims=True))

    def shortening(self, squared_lengths: np.ndarray) -> np.ndarray:
        """What free steps are multiplied with to stay within the trust region."""
        if self._largest is None:
            return np.ones_like(squared_lengths)
        smallest = np.finfo(np.float64).tiny
        return np.minimum(1.0, self._largest / np.sqrt(np.maximum(squared_lengths, smallest)))

    def by_layers(self, n_parts: int) -> list[tuple["NewtonSteps", slice]]:
        """Free steps of some layers each, of about equal work, and their columns."""
        sizes = [layer.gradients.shape[1] for layer in self._layers]
        work, first = np.cumsum([size**3 for size in sizes]), np.concatenate([[0], np.cumsum(sizes)])
        ends = np.unique(np.searchsorted(work, np.linspace(0, work[-1], n_parts + 1)[1:]) + 1)
        starts = [0, *ends[:-1]]
        return [
            (NewtonSteps(self._layers[start:end], self._damping), slice(int(first[start]), int(first[end])))
            for start, end in zip(starts, ends, strict=True)
        ]

    def _layer_steps(self, layer: LayerSums, masks: np.ndarray) -> np.ndarray:
        n_sources, k = layer.gradients.shape
        removed = torch.from_numpy((1.0 - masks.astype(np.float64)) @ layer.gradients)
        flat = torch.from_numpy(layer.curvatures.reshape(n_sources, k * k))
        kept = torch.from_numpy(masks.astype(np.float64))
        steps = torch.empty(len(masks), k, dtype=torch.float64)
        at_once = max(1, MAX_ENTRIES // (k * k))
        for first in range(0, len(masks), at_once):
            part = slice(first, first + at_once)
            matrices = _summed(masks[part], kept[part], flat).view(-1, k, k)
            matrices.diagonal(dim1=1, dim2=2).add_(self._damping)
            factor = torch.linalg.cholesky(matrices)
            steps[part] = torch.cholesky_solve(removed[part, :, None], factor)[:, :, 0]
        layer_steps: np.ndarray = steps.numpy()
        return layer_steps


def _summed(masks: np.ndarray, kept: Tensor, flat: Tensor) -> Tensor:
    """(m, k k) sum of the members' curvatures; from one coalition to the next where few players change between them.

    Args:
        masks, kept: (m, s) coalitions, as they came and as float64.
        flat: (s, k k) curvatures.
    """
    changes = masks[1:] != masks[:-1]
    if len(masks) < 2 or changes.sum() > FEW_CHANGES * changes.size:
        return torch.mm(kept, flat)
    sums = flat.new_empty(len(masks), flat.shape[1])
    sums[0] = kept[0] @ flat
    for row, (changed, before, now) in enumerate(zip(changes, masks[:-1], masks[1:], strict=True), 1):
        players = np.flatnonzero(changed)
        sums[row] = sums[row - 1]
        for player in players:
            sums[row].add_(flat[player], alpha=float(now[player]) - float(before[player]))
    return sums
