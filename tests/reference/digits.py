"""Digits with eight sources, and every coalition of them trained: what games are held against.

Sources: two exact copies, one with half of its labels drawn anew, one tiny, one irrelevant (shuffled pixels, labels
drawn anew), one that alone holds a class, two ordinary ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from dataworth.tasks.coalitions.games.expansion import QueryExpansion
from dataworth.tasks.coalitions.games.newton_steps import LayerSums
from dataworth.tasks.coalitions.valuation import shares

__all__ = ["COPIES", "MASKS", "NAMES", "Digits", "Network", "agreement", "digits", "shapley", "share_alone", "trained"]

NAMES = ("copy", "copied", "noisy", "tiny", "irrelevant", "alone", "ordinary", "another")
COPIES = (0, 1)
MASKS = all_coalitions(len(NAMES))
N_CLASSES = 10
ALONE = 9
EACH, TINY, HELD_OUT = 80, 10, 300
AT_ONCE = 32  # coalitions whose logits a processor's cache holds


@dataclass(frozen=True)
class Digits:
    """Training examples with their sources, and queries.

    Args:
        inputs: (n, 65) pixels in [0, 1] and a trailing 1.
        labels: (n,).
        sources: (n,) numbers.
        queries, query_labels: (q, 65) and (q,).
    """

    inputs: Tensor
    labels: Tensor
    sources: np.ndarray
    queries: Tensor
    query_labels: Tensor


def digits(seed: int) -> Digits:
    """The sources of one seed."""
    pixels, labels = load_digits(return_X_y=True)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(pixels))
    pixels, labels = pixels[order] / 16.0, labels[order]
    pool = np.arange(len(pixels) - HELD_OUT)
    lone, rest = pool[labels[pool] == ALONE], iter(np.split(pool[labels[pool] != ALONE][: 4 * EACH + TINY + EACH], [
        EACH, 2 * EACH, 2 * EACH + TINY, 3 * EACH + TINY, 4 * EACH + TINY]))  # fmt: skip
    copied, noisy, tiny, irrelevant, ordinary, another = rest
    parts = [copied, copied, noisy, tiny, irrelevant, lone[:EACH], ordinary, another]
    inputs = [pixels[part] for part in parts]
    targets = [labels[part].copy() for part in parts]
    wrong = generator.random(len(noisy)) < 0.5
    targets[2][wrong] = generator.integers(0, N_CLASSES, wrong.sum())
    inputs[4] = np.stack([generator.permutation(row) for row in inputs[4]])
    targets[4] = generator.integers(0, N_CLASSES, len(irrelevant))
    held = np.arange(len(pixels) - HELD_OUT, len(pixels))
    return Digits(
        _with_one(torch.from_numpy(np.concatenate(inputs)).float()),
        torch.from_numpy(np.concatenate(targets)),
        np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        _with_one(torch.from_numpy(pixels[held]).float()),
        torch.from_numpy(labels[held]),
    )


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)


@dataclass(frozen=True)
class Network:
    """Linear layers with a tanh between them; one layer is multinomial logistic regression.

    Args:
        sizes: outputs of each layer, the last one N_CLASSES.
    """

    sizes: tuple[int, ...] = (N_CLASSES,)

    def start(self, seed: int) -> list[Tensor]:
        """(out, in + 1) weights: zeros for a single layer, which is convex; else random."""
        if len(self.sizes) == 1:
            return [torch.zeros(N_CLASSES, 65)]
        generator = torch.Generator().manual_seed(seed)
        widths = (64, *self.sizes)
        return [
            torch.randn(out, n + 1, generator=generator) / (n + 1) ** 0.5
            for n, out in zip(widths, self.sizes, strict=False)
        ]

    def logits(self, weights: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """(…, n, N_CLASSES), the weights with as many leading dimensions as the inputs."""
        states = inputs
        for number, weight in enumerate(weights):
            states = (states if number == 0 else _with_one(torch.tanh(states))) @ weight.transpose(-1, -2)
        return states

    def losses(self, weights: Sequence[Tensor], inputs: Tensor, labels: Tensor) -> np.ndarray:
        """(m, n) losses of (m, out, in) weights, nats."""
        with torch.no_grad():
            logits = self.logits(weights, inputs.to(weights[0]).expand(len(weights[0]), *inputs.shape))
            found = cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
        return found.view(len(logits), -1).double().numpy()

    def rows(self, weights: Sequence[Tensor], inputs: Tensor, labels: Tensor | None) -> list[np.ndarray]:
        """Gradients of each example and layer, (n, k) float64; without labels of every class, times root p."""

        def loss(own: Sequence[Tensor], row: Tensor, label: Tensor, weight: Tensor) -> Tensor:
            return weight * cross_entropy(self.logits(own, row[None]), label[None])

        double = [weight.double() for weight in weights]
        inputs = inputs.double()
        if labels is None:
            chances = self.logits(double, inputs).softmax(dim=-1).flatten().sqrt()
            labels = torch.arange(N_CLASSES).repeat(len(inputs))
            inputs = inputs.repeat_interleave(N_CLASSES, dim=0)
        else:
            chances = torch.ones(len(inputs), dtype=torch.float64)
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))
        return [found.flatten(1).numpy() for found in each(double, inputs, labels, chances)]


def trained(
    network: Network, problem: Digits, start: list[Tensor], steps: int, rate: float, decay: float, momentum: float
) -> list[Tensor]:
    """Weights (2^8, out, in) after training on each coalition of MASKS: gradient descent on the sum of its losses.

    Coalitions that differ only in which of the two copies they hold are trained once.

    Args:
        network, problem: what is trained on what.
        start: theta_0 of every coalition.
        steps: of gradient descent with Nesterov's momentum.
        rate: learning rate.
        decay: lambda of 1/2 lambda |theta - theta_0|^2.
        momentum: of the steps.
    """
    held = MASKS.copy()
    held[:, COPIES] = np.sort(MASKS[:, COPIES], axis=1)
    different, numbers = np.unique(held, axis=0, return_inverse=True)
    parts = [
        _trained_on(network, problem, masks, start, steps, rate, decay, momentum)
        for masks in np.array_split(different, range(AT_ONCE, len(different), AT_ONCE))
    ]
    return [torch.cat(layers)[numbers.ravel()] for layers in zip(*parts, strict=True)]


def _trained_on(
    network: Network,
    problem: Digits,
    masks: np.ndarray,
    start: list[Tensor],
    steps: int,
    rate: float,
    decay: float,
    momentum: float,
) -> list[Tensor]:
    counted = torch.from_numpy(masks[:, problem.sources]).float()
    weights = [layer.expand(len(masks), *layer.shape).clone().requires_grad_(True) for layer in start]
    speeds = [torch.zeros_like(layer) for layer in weights]
    inputs, labels = problem.inputs.expand(len(masks), *problem.inputs.shape), problem.labels.repeat(len(masks))
    for _ in range(steps):
        losses = cross_entropy(network.logits(weights, inputs).flatten(0, 1), labels, reduction="none")
        gradients = torch.autograd.grad((losses.view(len(masks), -1) * counted).sum(), weights)
        with torch.no_grad():
            for layer, speed, gradient, first in zip(weights, speeds, gradients, start, strict=True):
                pulled = gradient + decay * (layer - first)
                speed.mul_(momentum).add_(pulled)
                layer.sub_(rate * (pulled + momentum * speed))
    return [layer.detach() for layer in weights]


def everybody(weights: Sequence[Tensor]) -> list[Tensor]:
    """theta*, the weights trained on all sources."""
    (number,) = np.flatnonzero(MASKS.all(axis=1))
    return [layer[number] for layer in weights]


def layer_sums(
    network: Network, problem: Digits, trained_weights: Sequence[Tensor], curvature_at: Sequence[Tensor]
) -> list[LayerSums]:
    """Sums by source and layer: gradients at theta*, the exact Gauss-Newton curvature at given weights."""
    gradients = network.rows(trained_weights, problem.inputs, problem.labels)
    labelled = network.rows(curvature_at, problem.inputs, None)
    of_rows = np.repeat(problem.sources, N_CLASSES)
    found = []
    for own, every_class in zip(gradients, labelled, strict=True):
        sums = np.stack([own[problem.sources == s].sum(axis=0) for s in range(len(NAMES))])
        parts = [every_class[of_rows == s] for s in range(len(NAMES))]
        found.append(LayerSums(sums, np.stack([part.T @ part for part in parts])))
    return found


def expansion(network: Network, problem: Digits, weights: Sequence[Tensor]) -> QueryExpansion:
    """The mean loss of the queries near theta*, as one query."""
    n = len(problem.queries)
    gradients = np.concatenate(network.rows(weights, problem.queries, problem.query_labels), axis=1)
    factors = np.concatenate(network.rows(weights, problem.queries, None), axis=1) / np.sqrt(n)
    loss = network.losses([layer[None].double() for layer in weights], problem.queries, problem.query_labels).mean()
    return QueryExpansion(np.array([loss]), gradients.mean(axis=0, keepdims=True), factors[None])


def shapley(worth: np.ndarray) -> np.ndarray:
    """(8,) Shapley values from the (2^8,) worth of MASKS."""
    return exact_semivalues(MASKS, worth[:, None], size_weights(len(NAMES), "shapley"))[0]


def agreement(values: np.ndarray, truth: np.ndarray, copies: Sequence[int] = COPIES) -> dict[str, float]:
    """Rank correlation, total variation of shares, relative error, and what the copies get together."""
    one, two = shares(values[None])[0], shares(truth[None])[0]
    return {
        "spearman": round(float(spearmanr(values, truth).statistic), 3),
        "share error": round(float(np.abs(one - two).sum() / 2), 3),
        "relative error": round(float(np.linalg.norm(values - truth) / np.linalg.norm(truth)), 3),
        "copies together": round(float(one[list(copies)].sum()), 3),
        "copies, truth": round(float(two[list(copies)].sum()), 3),
    }


def share_alone(worth: np.ndarray, masks: np.ndarray, copies: Sequence[int]) -> float:
    """Share of the first of two copies in the game that the second takes no part in.

    Args:
        worth: (m,) of the masks.
        masks: (m, s) every coalition.
        copies: the two.
    """
    one, copy = copies
    without = ~masks[:, copy]
    others = np.delete(np.arange(masks.shape[1]), copy)
    weights = size_weights(len(others), "shapley")
    found = shares(exact_semivalues(masks[without][:, others], worth[without, None], weights))[0]
    return round(float(found[list(others).index(one)]), 3)
