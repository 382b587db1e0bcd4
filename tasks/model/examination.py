"""A checkpoint tried on a few short texts when it is loaded: what it can be given, and what of it takes part."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dataworth.storage.errors import InputError
from dataworth.storage.layer_table import kind_of
from dataworth.tasks.capture.hooks import CaptureError
from dataworth.tasks.model.halves import Halves
from dataworth.tasks.model.layers import TrackedLayer
from dataworth.tasks.model.probes import Probe, differs, looks_ahead, plain_layers, probe_rows, usable_positions
from dataworth.tasks.model.reading import Reading

__all__ = ["Examination", "embedded_ids", "examined"]

# What architectures call the most tokens they read.
LIMITS = ("max_position_embeddings", "max_seq_len", "n_ctx", "max_target_positions", "max_sequence_length")


@dataclass(frozen=True)
class Examination:
    """What was found out.

    Args:
        reading: how examples are put together.
        layers: the tracked layers that have a part in the loss of a text.
        left_out: names of those that have none, such as a tower for images.
        max_positions: most tokens the model reads; None if it states none.
    """

    reading: Reading
    layers: tuple[TrackedLayer, ...]
    left_out: tuple[str, ...]
    max_positions: int | None


def examined(
    model: Any, tokenizer: Any, layers: Sequence[TrackedLayer], parts: Halves, *, classifies: bool
) -> Examination:
    """Examine a model, in a few passes over some twenty tokens.

    Args:
        model: a transformers model, frozen, in evaluation mode, on its device.
        tokenizer: its own.
        layers: to track.
        parts: body and head.
        classifies: a sequence classifier; else a causal language model.

    Raises:
        InputError: it reads no text alone, is no causal language model, computes something else every time, or a layer
            cannot be captured.
    """
    stated = _stated_positions(model.config)
    n_ids = embedded_ids(model) or len(tokenizer)
    rows = probe_rows(tokenizer, n_ids, stated)
    device = next(model.parameters()).device

    def states(row: Sequence[int]) -> Tensor:
        ids = torch.tensor([row], device=device)
        return parts.body(ids, torch.ones_like(ids))

    with _translate_errors("it cannot read a text alone"):
        counted = usable_positions(lambda: states(rows[0]), len(rows[0]))
        plain = plain_layers(lambda: states(rows[0]), layers)
        if differs(lambda: states(rows[0])):
            raise InputError("it computes something else every time it reads the same text")
        if not classifies:
            _refuse_lookahead(model.config, lambda row: parts.head(states(row)), rows)
    with _translate_errors("gradients of its layers cannot be taken"):
        probe = Probe(parts, plain, rows, classifies=classifies, device=device)
        kept, some_idle = _kept(plain, probe.reached)
        may_idle = some_idle or probe.is_routed
        if len(kept) < len(plain):
            probe = Probe(parts, kept, rows, classifies=classifies, device=device)
        pad_token = _pad_token(model.config, tokenizer, n_ids)
        batching = probe.batching(pad_token, model.dtype)
    limits = [limit for limit in (stated, counted) if limit is not None]
    names = {layer.name for layer in kept}
    return Examination(
        reading=Reading(pad_token, batching, may_idle),
        layers=kept,
        left_out=tuple(layer.name for layer in layers if layer.name not in names),
        max_positions=min(limits, default=None),
    )


def _stated_positions(config: Any) -> int | None:
    of_text = config.get_text_config()
    stated = (getattr(of_text, name, None) for name in LIMITS)
    return next((number for number in stated if isinstance(number, int) and number > 0), None)


def _pad_token(config: Any, tokenizer: Any, n_ids: int) -> int:
    """What the model's own code takes for padding, else the tokenizer."""
    named = (getattr(config.get_text_config(), "pad_token_id", None), config.pad_token_id, tokenizer.pad_token_id)
    return next((number for number in named if isinstance(number, int) and 0 <= number < n_ids), 0)


def embedded_ids(model: Any) -> int | None:
    """How many token ids a model embeds, from 0; None where it has no table of them."""
    try:
        weight = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        return None
    return int(weight.shape[0])


@contextmanager
def _translate_errors(what: str) -> Iterator[None]:
    """What a model's code raises, whatever it is, as one sentence."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except CaptureError as error:
        raise InputError(str(error)) from error
    except Exception as error:
        raise InputError(f"{what} ({' '.join(str(error).split())[:200]})") from error


def _refuse_lookahead(config: Any, logits_of: Callable[[Sequence[int]], Tensor], rows: Sequence[Sequence[int]]) -> None:
    row, other = rows[0], next((number for number in rows[2] if number != rows[0][-1]), rows[0][0])
    if looks_ahead(logits_of, row, other):
        kind = ", ".join(config.architectures or ())
        raise InputError(
            f"it is no causal language model ({kind}): what it predicts for a token changes with the tokens after it, "
            "so its loss is none that it was trained on; give a causal language model, or a sequence classifier"
        )


def _kept(layers: Sequence[TrackedLayer], reached: set[str]) -> tuple[tuple[TrackedLayer, ...], bool]:
    """Layers with a part in the loss, and whether one of them may have none in some example's.

    A layer that was not reached may be one of many alike of which each example takes some (experts): then another one,
    whose name is the same but for numbers, was.
    """
    kinds = {kind_of(name) for name in reached}
    kept = tuple(layer for layer in layers if kind_of(layer.name) in kinds)
    if not kept:
        raise InputError(
            f"none of its {len(layers)} linear layers, such as {layers[0].name}, has a part in the loss of a text"
        )
    return kept, any(layer.name not in reached for layer in kept)
