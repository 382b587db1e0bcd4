"""Influence with the Fisher of all parameters at once, embeddings and norms included, of a small language model.

The Fisher is the mean over windows of g g^T under labels drawn from the model, g of one window and draw. It has a rank
of at most windows times draws, so its damped inverse is taken through the rows' products (Woodbury's identity):
q^T (F + lambda I)^-1 z = (q^T z - q^T G^T (n lambda I + G G^T)^-1 G z) / lambda.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dataworth.tasks.corpus.examples import Examples

__all__ = ["whole_scores"]


def whole_scores(
    model: nn.Module,
    taught: Examples,
    queries: Examples,
    spaces: Mapping[str, Callable[[str], str | None]],
    ratios: Sequence[float],
    draws: int = 2,
) -> dict[tuple[str, float], np.ndarray]:
    """(q, n) scores divided by n, for every space and damping.

    Memory: a float32 of every parameter for each window and draw, each window and each query.

    Args:
        model: a causal language model of transformers, its parameters with gradients.
        taught: windows of the corpus.
        queries: rows with a loss on some of their tokens.
        spaces: name → from a parameter's name to the block of the Fisher that it is in, None for one that is fixed.
        ratios: damping of a block by the mean of the eigenvalues of its Fisher that carry mass.
        draws: of labels.
    """
    names = [name for name, _ in model.named_parameters()]
    ends = np.cumsum([parameter.numel() for parameter in model.parameters()])
    drawn, own = _rows(model, taught, draws, torch.Generator().manual_seed(0))
    asked = _rows(model, queries, 0, None)[1]
    parts = [slice(end - parameter.numel(), end) for end, parameter in zip(ends, model.parameters(), strict=True)]
    products = [_products(drawn[:, part], own[:, part], asked[:, part]) for part in parts]
    n, found = taught.n_examples, {}
    for space, block_of in spaces.items():
        blocks: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            block = block_of(name)
            if block is not None:
                blocks.setdefault(block, []).append(number)
        together = [
            tuple(sum(products[number][one] for number in block) for one in range(4)) for block in blocks.values()
        ]
        for ratio in ratios:
            found[space, ratio] = sum(_inverted(*block, n, ratio) for block in together) / n
    return found


def _rows(model: nn.Module, examples: Examples, draws: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """(n draws, d) gradients under drawn labels, divided by the root of the draws, and (n, d) under the data's own."""
    size = sum(parameter.numel() for parameter in model.parameters())
    drawn, own = torch.empty(examples.n_examples * draws, size), torch.zeros(examples.n_examples, size)
    for number in range(examples.n_examples):
        ids, mask, labels = examples.batch(np.array([number]), torch.device("cpu"), 0)
        losses = -model(input_ids=ids, attention_mask=mask).logits[0, :-1].log_softmax(-1)
        targets = labels[0, 1:]
        chosen = targets >= 0
        if not chosen.any():
            continue
        losses, targets = losses[chosen], targets[chosen, None]
        own[number] = _gradient(model, losses.gather(-1, targets).sum())
        for draw in range(draws):
            label = torch.multinomial((-losses.detach()).exp(), 1, generator=generator)
            drawn[number * draws + draw] = _gradient(model, losses.gather(-1, label).sum()) / draws**0.5
    return drawn, own


def _gradient(model: nn.Module, loss: Tensor) -> Tensor:
    parts = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def _products(drawn: Tensor, own: Tensor, asked: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """G G^T, G z, G q and q z, float64 of products in float32."""
    return (drawn @ drawn.T).double(), (drawn @ own.T).double(), (drawn @ asked.T).double(), (asked @ own.T).double()


def _inverted(gram: Tensor, taught: Tensor, asked: Tensor, plain: Tensor, n: int, ratio: float) -> np.ndarray:
    eigenvalues = torch.linalg.eigvalsh(gram) / n
    damping = ratio * eigenvalues[eigenvalues > 1e-6 * eigenvalues.max()].mean()
    factor = torch.linalg.cholesky(gram + n * damping * torch.eye(len(gram), dtype=gram.dtype))
    solved: Tensor = (plain - asked.T @ torch.cholesky_solve(taught, factor)) / damping
    return solved.numpy()
