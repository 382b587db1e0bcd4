"""The loss of an example: the SUM over its target tokens of -log p(token | prefix), in nats."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["example_losses", "sampled_labels"]

IGNORED = -100
PIECE_TOKENS = 1024


def _targets(labels: Int[Tensor, "n t"]) -> Int[Tensor, "n t"]:
    """Labels moved one place to the left: position t predicts token t + 1; the last predicts nothing."""
    targets = torch.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    return targets


def example_losses(logits: Float[Tensor, "n t v"], labels: Int[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """Sum over target tokens of -log p(token | prefix), for each example.

    Args:
        logits: (n, t, v) of a causal language model.
        labels: (n, t) token ids; -100 where a token carries no loss. The first token never does.

    Returns:
        (n,) float32 (float64 from float64 logits), nats, summed (not averaged) over tokens.
    """
    targets = _targets(labels)
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = cross_entropy(precise.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(labels.shape).sum(dim=1)


def sampled_labels(
    logits: Float[Tensor, "n t v"], labels: Int[Tensor, "n t"], draws: int, generator: torch.Generator
) -> Int[Tensor, "m n t"]:
    """Labels drawn from the model's own predictions, wherever the data's labels carry loss.

    Their gradients give the true Fisher, E over p(y | x) of g g^T (Martens & Grosse 2015, section 2.2).

    Args:
        logits: (n, t, v); position t predicts token t + 1.
        labels: (n, t) the data's labels; -100 stays -100.
        draws: m, independent draws.
        generator: on the logits' device.

    Returns:
        (draws, n, t) labels in the same places as the data's.
    """
    targets = _targets(labels)
    chosen = targets != IGNORED
    moved = torch.zeros_like(chosen)
    moved[:, 1:] = chosen[:, :-1]
    drawn = labels.new_full((draws, *labels.shape), IGNORED)
    # In pieces: the probabilities of a whole batch in float32 would be as large as its logits again.
    samples = [
        torch.multinomial(piece.float().softmax(dim=-1), draws, replacement=True, generator=generator)
        for piece in logits.detach()[chosen].split(PIECE_TOKENS)
        if len(piece)
    ]
    if samples:
        drawn[:, moved] = torch.cat(samples).T.to(labels.dtype)
    return drawn
