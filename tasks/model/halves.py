"""A model as two halves: the body that makes hidden states, and the head that makes logits of them.

Split like that, the logits of a whole batch, the largest tensor of all, never exist (see capture/losses.py). Whether
a model can be split is not guessed: both ways are compared on a probe, and the head is the identity where they differ.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["Halves", "halves", "whole"]

PROBE_TOKENS = 5


class Halves(NamedTuple):
    """Args:
    body: (input_ids, attention_mask) → hidden states, (n, t, d) or, of a classifier, (n, d).
    head: hidden states (p, d) → logits (p, v).
    """

    body: Callable[[Tensor, Tensor], Tensor]
    head: Callable[[Tensor], Tensor]


def whole(model: nn.Module) -> Halves:
    """The model in one piece: its "hidden states" are the logits."""

    def body(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits

    return Halves(body, _unchanged)


def halves(model: nn.Module) -> Halves:
    """Body and head of a causal language model, or `whole` where the split changes the logits.

    Args:
        model: a transformers model in evaluation mode.
    """
    one, base = whole(model), getattr(model, "base_model", None)
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if base is None or base is model or not isinstance(output, nn.Module):
        return one

    def body(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states: Tensor = base(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states

    with torch.no_grad():
        input_ids = torch.arange(PROBE_TOKENS, device=next(model.parameters()).device)[None]
        mask = torch.ones_like(input_ids)
        expected = one.body(input_ids, mask)
        for head in _heads(output, model.config):
            try:
                logits = head(body(input_ids, mask))
            except (AttributeError, RuntimeError, TypeError):  # the body gives, or the head wants, something else
                return one
            if logits.shape == expected.shape and torch.allclose(logits, expected, rtol=1e-3, atol=1e-5):
                return Halves(body, head)
    return one


def _unchanged(states: Tensor) -> Tensor:
    return states


def _heads(output: nn.Module, config: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """The ways published models make logits of the output layer: as it is, soft-capped, scaled."""
    yield output
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        yield partial(_capped, output, cap)
    for name, power in (("logit_scale", 1), ("logits_scaling", -1)):
        scale = getattr(config, name, None)
        if scale:
            yield partial(_scaled, output, scale**power)


def _capped(output: nn.Module, cap: float, states: Tensor) -> Tensor:
    return torch.tanh(output(states) / cap) * cap


def _scaled(output: nn.Module, factor: float, states: Tensor) -> Tensor:
    logits: Tensor = output(states) * factor
    return logits
