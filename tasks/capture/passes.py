"""One forward pass and its backward passes over a batch of examples."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import cross_entropy

from dataworth.tasks.capture.gradients import GradientCapture
from dataworth.tasks.capture.heads import HeadTargets
from dataworth.tasks.capture.hooks import LayerCapture
from dataworth.tasks.capture.losses import IGNORED, Head, Labeller, data_labels, next_tokens, target_losses

__all__ = ["Body", "backward_losses", "backward_passes", "forward_losses", "gradient_rows", "predicting_states"]

# input_ids, attention_mask → hidden states (n, t, d) of a language model, or (n, d) of a classifier
Body = Callable[[Tensor, Tensor], Tensor]


def gradient_rows(
    body: Body,
    head: Head,
    capture: GradientCapture,
    input_ids: Shaped[Tensor, "n ..."],
    attention_mask: Int[Tensor, "n _"],
    labels: Int[Tensor, "n ..."],
) -> tuple[Float[Tensor, "n c"], Float[Tensor, " n"]]:
    """Gradients of each example's loss, and the losses (nats, summed over targets).

    Args:
        body: from tokens to hidden states.
        head: from hidden states to logits; body and head belong to a model with frozen weights.
        capture: active, on layers of the body or the head.
        input_ids, attention_mask: one padded batch; or (n, …) rows of a table, and ones.
        labels: (n, t) token ids, -100 where there is no loss; or (n,) classes.
    """
    capture.expect(len(input_ids))
    losses = backward_losses(body, head, input_ids, attention_mask, labels, capture)
    return capture.rows(), losses


def backward_losses(
    body: Body,
    head: Head,
    input_ids: Shaped[Tensor, "n ..."],
    attention_mask: Int[Tensor, "n _"],
    labels: Int[Tensor, "n ..."],
    capture: LayerCapture | None = None,
) -> Float[Tensor, " n"]:
    """Back-propagates the sum of the examples' losses; returns each (nats, summed over its targets).

    Args:
        body, head, input_ids, attention_mask, labels, capture: as in `gradient_rows`; whoever captures says before how
            many examples there are.
    """
    hidden, targets, examples, places = predicting_states(body(input_ids, attention_mask), labels)
    (losses,) = target_losses(hidden, head, data_labels(targets), _seen(capture, examples, places))
    losses.sum().backward()
    return losses.detach().new_zeros(len(labels)).index_add_(0, examples, losses.detach())


@torch.no_grad()
def forward_losses(
    body: Body,
    head: Head,
    input_ids: Shaped[Tensor, "n ..."],
    attention_mask: Int[Tensor, "n _"],
    labels: Int[Tensor, "n ..."],
) -> Float[Tensor, " n"]:
    """Each example's loss (nats, summed over its targets), without a backward pass.

    Args:
        body, head, input_ids, attention_mask, labels: as in `gradient_rows`.
    """
    hidden, targets, examples, _ = predicting_states(body(input_ids, attention_mask), labels)
    logits = head(hidden)
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = cross_entropy(precise, targets, reduction="none")
    return losses.new_zeros(len(labels)).index_add_(0, examples, losses)


def backward_passes(
    body: Body,
    head: Head,
    input_ids: Shaped[Tensor, "n ..."],
    attention_mask: Int[Tensor, "n _"],
    labels: Int[Tensor, "n ..."],
    labeller: Callable[[Tensor], Labeller],
    capture: LayerCapture | None = None,
) -> Iterator[None]:
    """One forward pass, and a backward pass for each label a labeller gives; it stops after each for the caller.

    Args:
        body, head, input_ids, attention_mask, labels, capture: as in `backward_losses`; the data's labels say where
            there is loss.
        labeller: from the (p,) data's targets, those with loss in row-major order, to the labels to use.
    """
    hidden, targets, examples, places = predicting_states(body(input_ids, attention_mask), labels)
    losses = target_losses(hidden, head, labeller(targets), _seen(capture, examples, places))
    del hidden
    for number, loss in enumerate(losses, 1):
        loss.sum().backward(retain_graph=number < len(losses))
        yield


def predicting_states(states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States that predict something (p, d), what they predict (p,), the example of each (p,), its place there (p,)."""
    if labels.dim() == 1:
        numbers = torch.arange(len(labels), device=labels.device)
        return states, labels, numbers, torch.zeros_like(numbers)
    targets = next_tokens(labels)
    chosen = targets != IGNORED
    examples, places = chosen.nonzero().unbind(dim=1)
    return states[chosen], targets[chosen], examples, places


def _seen(capture: LayerCapture | None, examples: Tensor, places: Tensor) -> HeadTargets | None:
    return None if capture is None else capture.of_targets(examples, places)
