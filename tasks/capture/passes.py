"""One forward pass and its backward passes: from a batch of examples to rows of projected gradients."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tasks.capture.hooks import GradientCapture
from tasks.capture.losses import example_losses, sampled_labels

__all__ = ["gradient_rows", "sampled_gradient_rows"]


def gradient_rows(
    model: nn.Module,
    capture: GradientCapture,
    input_ids: Int[Tensor, "n t"],
    attention_mask: Int[Tensor, "n t"],
    labels: Int[Tensor, "n t"],
) -> tuple[Float[Tensor, "n c"], Float[Tensor, " n"]]:
    """Gradients of each example's loss, and the losses (nats, summed over tokens).

    Args:
        model: a causal language model with frozen weights.
        capture: active, on layers of this model.
        input_ids, attention_mask, labels: one padded batch; labels are -100 where there is no loss.
    """
    # No name holds the logits, the largest tensor of all: back-propagation does not need them.
    losses = example_losses(model(input_ids=input_ids, attention_mask=attention_mask).logits, labels)
    losses.sum().backward()
    return capture.rows(), losses.detach()


def sampled_gradient_rows(
    model: nn.Module,
    capture: GradientCapture,
    input_ids: Int[Tensor, "n t"],
    attention_mask: Int[Tensor, "n t"],
    labels: Int[Tensor, "n t"],
    draws: int,
    generator: torch.Generator,
) -> Iterator[Float[Tensor, "n c"]]:
    """For each draw the gradients under labels sampled from the model: one forward pass, `draws` backward passes.

    Args:
        model, capture, input_ids, attention_mask, labels: as in `gradient_rows`.
        draws: independent draws of the labels.
        generator: on the model's device.
    """
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
    for draw, drawn in enumerate(sampled_labels(logits, labels, draws, generator), 1):
        example_losses(logits, drawn).sum().backward(retain_graph=draw < draws)
        yield capture.rows()
