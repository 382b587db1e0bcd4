"""The loss of an example: the SUM over its targets of -log p, in nats, without the logits of a whole batch.

A language model's targets are tokens, position t predicting token t + 1; a classifier has one target an example. The
head (hidden state to logits) is run on pieces of the targets and its backward pass is taken at once, so that the
logits of a piece are the most that exists.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from dataworth.tasks.capture.heads import HeadTargets

__all__ = [
    "IGNORED",
    "Head",
    "Labeller",
    "data_labels",
    "drawn_labels",
    "every_class",
    "example_losses",
    "next_tokens",
    "target_losses",
]

IGNORED = -100
# Targets whose logits exist at a time: 1024 at a vocabulary of 128,000 are 0.5 GB in float32.
PIECE_TARGETS = 1024

Head = Callable[[Tensor], Tensor]
# (logits of a piece (p, v), which targets of the batch they are) → labels (m, p) and the weight of each (m, p)
Labeller = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


def next_tokens(labels: Int[Tensor, "n t"]) -> Int[Tensor, "n t"]:
    """Labels moved one place to the left: position t predicts token t + 1; the last predicts nothing."""
    targets = torch.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    return targets


def example_losses(logits: Float[Tensor, "n t v"], labels: Int[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """Sum over target tokens of -log p(token | prefix), for each example, of logits that are there already.

    Args:
        logits: (n, t, v) of a causal language model.
        labels: (n, t) token ids; -100 where a token carries no loss. The first token never does.

    Returns:
        (n,) float32 (float64 from float64 logits), nats, summed (not averaged) over tokens.
    """
    targets = next_tokens(labels)
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = cross_entropy(precise.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(labels.shape).sum(dim=1)


def data_labels(targets: Int[Tensor, " p"]) -> Labeller:
    """The data's own labels, each with weight 1."""

    def labels(logits: Tensor, piece: slice) -> tuple[Tensor, Tensor]:
        own = targets[None, piece]
        return own, torch.ones_like(own, dtype=logits.dtype)

    return labels


def drawn_labels(uniforms: Float[Tensor, "m p"]) -> Labeller:
    """Labels drawn from the model's own predictions, by inverting their distribution at given uniform numbers.

    Their gradients give the true Fisher, E over p(y | x) of g g^T (Martens & Grosse 2015, section 2.2). Each of the m
    draws has weight 1 / m.

    Args:
        uniforms: (m, p) in [0, 1), one number for each draw and target.
    """

    def labels(logits: Tensor, piece: slice) -> tuple[Tensor, Tensor]:
        upto = logits.detach().softmax(dim=-1).cumsum(dim=-1)
        # Rounding may leave the last sum below one; scaled by it, no number falls beyond the vocabulary.
        wanted = uniforms[:, piece].T.to(upto.dtype) * upto[:, -1:]
        drawn = torch.searchsorted(upto, wanted.contiguous(), right=True).clamp_(max=upto.shape[-1] - 1).T
        return drawn, torch.full(drawn.shape, 1 / len(uniforms), dtype=logits.dtype, device=logits.device)

    return labels


def every_class(n_classes: int) -> Labeller:
    """Every class once, with its probability as its weight: the expectation itself, where the classes are few."""

    def labels(logits: Tensor, piece: slice) -> tuple[Tensor, Tensor]:
        classes = torch.arange(n_classes, device=logits.device)[:, None].expand(n_classes, len(logits))
        return classes, logits.detach().softmax(dim=-1).T

    return labels


class _TargetLosses(torch.autograd.Function):
    """One vector of losses for each of the m labels, sqrt(weight) * -log p, and the way back to the hidden states."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, labeller: Labeller, seen: HeadTargets | None
    ) -> tuple[Tensor, ...]:
        losses: list[list[Tensor]] = []
        gradients: list[list[Tensor]] = []
        for first in range(0, len(hidden), PIECE_TARGETS):
            piece = slice(first, min(first + PIECE_TARGETS, len(hidden)))
            state = hidden[piece].detach().requires_grad_(True)
            with torch.enable_grad():
                with nullcontext() if seen is None else seen:
                    logits = head(state)
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                labels, weights = labeller(logits, piece)
                scaled = [
                    cross_entropy(logits, label, reduction="none") * weight.sqrt()
                    for label, weight in zip(labels, weights, strict=True)
                ]
            gradients.append([])
            for number, loss in enumerate(scaled):
                if seen is not None:
                    seen.draw(number)
                is_last = number == len(scaled) - 1
                gradients[-1] += torch.autograd.grad(loss, state, torch.ones_like(loss), retain_graph=not is_last)
            losses.append([loss.detach() for loss in scaled])
        ctx.seen = seen
        ctx.gradients = [torch.cat(parts) for parts in zip(*gradients, strict=True)]
        ctx.set_materialize_grads(False)
        return tuple(torch.cat(parts) for parts in zip(*losses, strict=True))

    @staticmethod
    def backward(ctx: Any, *from_losses: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        total = None
        for number, (gradient, outer) in enumerate(zip(ctx.gradients, from_losses, strict=True)):
            if outer is not None:
                if ctx.seen is not None:
                    ctx.seen.arrive(number, outer)
                part = gradient * outer[:, None].to(gradient.dtype)
                total = part if total is None else total + part
        return total, None, None, None


def target_losses(
    hidden: Float[Tensor, "p d"], head: Head, labeller: Labeller, seen: HeadTargets | None = None
) -> tuple[Tensor, ...]:
    """sqrt(weight) * -log p(label) of every target, one vector for each of the labeller's m labels.

    Args:
        hidden: (p, d) states from which the targets are predicted.
        head: from (p, d) to logits (p, v); its own weights get no gradient.
        labeller: the labels of each target.
        seen: whose targets they are, where a capture is on the head.

    Returns:
        m tensors (p,), nats, float32 (float64 from float64 logits).
    """
    if len(hidden) == 0:
        return (hidden.sum(dim=1).float(),)
    if seen is not None and torch.is_grad_enabled() and not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_(True)  # nothing below the head is captured
    losses: tuple[Tensor, ...] = _TargetLosses.apply(hidden, head, labeller, seen)
    return losses
