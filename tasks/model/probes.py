"""What cannot be read off a checkpoint's files is tried on a few short texts, once, when it is loaded.

Each example's gradient must be that of the example alone. Whether that holds in a padded batch depends on a model's
code: heads that look for the padding token, layers that read a stack of routed tokens, tables that a whole batch
shares. So three rows of tokens are run alone and together, and their gradients compared, through the same capture that
is used afterwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dataworth.tasks.capture.gradients import GradientCapture
from dataworth.tasks.capture.hooks import CaptureError
from dataworth.tasks.capture.passes import gradient_rows
from dataworth.tasks.capture.uses import Lookups, Routed, is_affine, looked_up
from dataworth.tasks.model.halves import Halves
from dataworth.tasks.model.layers import TrackedLayer
from dataworth.tasks.model.reading import Batching
from dataworth.tasks.model.tokens import encoded

__all__ = [
    "ROUNDING",
    "ROUNDING_OF_HALF",
    "Probe",
    "differs",
    "looks_ahead",
    "plain_layers",
    "probe_rows",
    "usable_positions",
]

# Rows of unequal lengths, two of them alike in length; without the tokens that a tokenizer adds.
LENGTHS = (9, 5, 9)
# Share of the largest that rounding may leave of a difference. Measured over all families of transformers, float32:
# up to 1.3e-5 where two passes should agree, from 3.7e-2 where one is wrong.
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
ROUNDING_OF_HALF = 0.1
# Of a fine-tuned model of 30 layers gradients of one text change by up to 5.7e-3 with the number of its copies in a
# batch, whatever else is there: so much is rounding where the copies, too, are that far from the text alone.
ROUNDING_OF_COPIES = {torch.float64: 1e-5, torch.float32: 2e-2}
ROUNDING_OF_COPIES_OF_HALF = 0.2
# The same of what is computed twice in the same shapes: causal models differ by nothing at all, or by the order in
# which routed tokens are summed, up to 4e-7; encoders with weights as they are drawn, by 1e-3 and more.
REPEATED = {torch.float64: 1e-9, torch.float32: 2e-5}
REPEATED_OF_HALF = 0.02


def probe_rows(tokenizer: Any, n_ids: int, room: int | None) -> list[list[int]]:
    """Rows of token ids as the tokenizer would make them: ordinary ids between the tokens it adds to every text.

    Args:
        tokenizer: of the checkpoint.
        n_ids: ids that the model embeds.
        room: most tokens of a row; None for no limit.
    """
    text = encoded(tokenizer, "a")
    before, after = text.ids[: text.n_before], text.ids[text.end :]
    special = set(tokenizer.all_special_ids)
    ordinary = [number for number in range(min(n_ids, len(tokenizer))) if number not in special] or list(range(n_ids))
    most = max(LENGTHS) if room is None else max(2, room - len(before) - len(after))
    generator = np.random.default_rng(0)
    drawn = [generator.choice(ordinary, min(length, most)).tolist() for length in LENGTHS]
    return [[*before, *ids, *after] for ids in drawn]


@dataclass(frozen=True)
class _Corner:
    """A projection of a layer onto a few directions, in which a wrong gradient shows as one in the whole space does.

    Args:
        name: of the layer.
        inputs, outputs: (n_inputs, k) and (n_outputs, k) random directions.
        has_bias: the input carries a trailing 1.
        reads_tokens: it reads all tokens of a text, padding too; heads and experts read some, vectors do not mind.
        lengths: gets how many tokens an example's input was seen to have, where its output had a gradient.
    """

    name: str
    inputs: Tensor
    outputs: Tensor
    has_bias: bool
    reads_tokens: bool
    lengths: set[int]

    @property
    def n_columns(self) -> int:
        return self.inputs.shape[1] * self.outputs.shape[1]

    def projected_activation(self, activation: Tensor) -> Tensor:
        inputs = self.inputs.to(activation)
        if not self.has_bias:
            return activation @ inputs
        return activation @ inputs[:-1] + inputs[-1]

    def projected_output_gradient(self, output_gradient: Tensor) -> Tensor:
        return output_gradient @ self.outputs.to(output_gradient)

    def looked_up(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return self.outputs.to(ids.device, dtype)[ids]

    def gradient(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        self.lengths.add(outputs.shape[1] if self.reads_tokens else 1)
        return torch.bmm(outputs.mT, inputs).flatten(1)


class Probe:
    """A few rows run through a model, alone and together.

    Args:
        parts: body and head.
        layers: whose gradients are compared.
        rows: token ids of each.
        classifies: the model has one target an example.
        device: of the model.

    Raises:
        CaptureError: a layer cannot be captured at all.
    """

    N_DIRECTIONS = 2

    def __init__(
        self,
        parts: Halves,
        layers: Sequence[TrackedLayer],
        rows: Sequence[Sequence[int]],
        *,
        classifies: bool,
        device: torch.device,
    ) -> None:
        self._parts, self._layers, self._rows = parts, layers, rows
        self._classifies, self._device = classifies, device
        generator = torch.Generator().manual_seed(0)
        head = parts.head.args[0] if isinstance(parts.head, partial) else parts.head  # what caps or scales its logits
        of_head = set(head.modules()) if isinstance(head, nn.Module) else set()
        self._corners = [
            _Corner(
                layer.name,
                torch.randn(layer.n_inputs, self.N_DIRECTIONS, generator=generator),
                torch.randn(layer.n_outputs, self.N_DIRECTIONS, generator=generator),
                layer.has_bias,
                not (layer.vectors or any(m in of_head or isinstance(m, Routed) for m in layer.modules)),
                set(),
            )
            for layer in layers
        ]
        self._alone = torch.cat([self._gradients([number], 0) for number in range(len(rows))])
        self.reached = {corner.name for corner in self._corners if corner.lengths}
        known = {1, *map(len, rows)}
        self.is_routed = any(isinstance(module, Routed) for layer in layers for module in layer.modules)
        self.is_routed |= any(corner.lengths - known for corner in self._corners)

    def _gradients(self, numbers: Sequence[int], pad_token: int) -> Tensor:
        """(n, n_layers, N_DIRECTIONS²) of some rows as one batch, on the CPU, in float64."""
        width = max(len(self._rows[number]) for number in numbers)
        ids = torch.full((len(numbers), width), pad_token)
        mask = torch.zeros_like(ids)
        for place, number in enumerate(numbers):
            ids[place, : len(self._rows[number])] = torch.tensor(self._rows[number])
            mask[place, : len(self._rows[number])] = 1
        labels = torch.zeros(len(numbers), dtype=torch.int64) if self._classifies else ids.masked_fill(mask == 0, -100)
        batch = [tensor.to(self._device) for tensor in (ids, mask, labels)]
        modules = [layer.uses for layer in self._layers]
        with torch.enable_grad(), GradientCapture(modules, self._corners, may_idle=True) as capture:
            rows, _ = gradient_rows(*self._parts, capture, *batch)
        return rows.double().cpu().view(len(numbers), len(self._layers), -1)

    def batching(self, pad_token: int, dtype: torch.dtype) -> Batching:
        """The most that may be in one batch: rows of any lengths, rows of one length, or one row.

        Args:
            pad_token: that shorter rows are filled with.
            dtype: of the model.
        """
        widest = max(range(len(self._rows)), key=lambda number: len(self._rows[number]))
        of_width = [number for number, row in enumerate(self._rows) if len(row) == len(self._rows[widest])]
        kinds: tuple[tuple[Batching, Sequence[int]], ...] = (("padded", range(len(self._rows))), ("equal", of_width))
        for kind, numbers in kinds:
            for corner in self._corners:
                corner.lengths.clear()
            try:
                together = self._gradients(numbers, pad_token)
            except (CaptureError, ValueError, RuntimeError, IndexError):  # the model's own, or a shape's
                continue
            # Sums over tokens leave out padding by the batch's mask, which says nothing of other positions.
            known = {1, len(self._rows[widest])}
            if kind == "padded" and any(corner.lengths - known for corner in self._corners):
                continue
            if self._is_alone(together, list(numbers), dtype):
                return kind
        return "alone"

    def _is_alone(self, together: Tensor, numbers: list[int], dtype: torch.dtype) -> bool:
        """Whether rows of a batch have the gradients that each has alone, but for rounding."""
        alone, rounding = self._alone[numbers], ROUNDING.get(dtype, ROUNDING_OF_HALF)
        if _agree(together, alone, rounding):
            return True
        if not _agree(together, alone, ROUNDING_OF_COPIES.get(dtype, ROUNDING_OF_COPIES_OF_HALF)):
            return False
        return _agree(together, torch.stack([self._of_copies(number) for number in numbers]), rounding)

    def _of_copies(self, number: int) -> Tensor:
        """(n_layers, N_DIRECTIONS²) of a row in a batch of itself."""
        return self._gradients([number, number], 0)[0]


def _agree(together: Tensor, alone: Tensor, tolerance: float) -> bool:
    """Of every layer, no gradient differs by more than this part of the largest."""
    largest = alone.abs().amax(dim=(0, 2))
    difference = (together - alone).abs().amax(dim=(0, 2))
    return bool((difference <= tolerance * largest).all())


@torch.no_grad()
def differs(run: Callable[[], Tensor]) -> bool:
    """Whether a pass gives something else the second time.

    Args:
        run: one pass over a row of tokens.
    """
    return _apart(run(), run())


@torch.no_grad()
def looks_ahead(logits_of: Callable[[Sequence[int]], Tensor], row: Sequence[int], other: int) -> bool:
    """Whether predictions of earlier tokens change with the last one: not so of a causal language model.

    Args:
        logits_of: token ids → (1, t, v) logits.
        row: token ids, at least two.
        other: an id that may take the place of the last one, not the same.
    """
    before, after = (logits_of(ids)[0, :-1] for ids in (row, [*row[:-1], other]))
    return _apart(before, after)


def _apart(one: Tensor, other: Tensor) -> bool:
    """They differ by more than rounding."""
    difference = float((one - other).abs().max())
    return not difference <= REPEATED.get(one.dtype, REPEATED_OF_HALF) * float(one.abs().max())


@torch.no_grad()
def usable_positions(run: Callable[[], Any], n_tokens: int) -> int | None:
    """Most tokens that a model's tables of positions have room for; None where it looks up none.

    Some tables begin to count behind the padding token's number, so that their size says too much.

    Args:
        run: one pass over a row of tokens.
        n_tokens: of the row.
    """
    with Lookups() as lookups:
        run()
    flat = [(table, ids.flatten()) for table, ids in lookups.seen if ids.numel() == n_tokens > 2]
    in_order = [(len(table), int(ids[0])) for table, ids in flat if bool((ids.diff() == 1).all())]
    return min((size - first for size, first in in_order), default=None)


@torch.no_grad()
def plain_layers(run: Callable[[], Any], layers: Sequence[TrackedLayer]) -> list[TrackedLayer]:
    """The layers that are what they seem: y = W x + b of their first input, rows of a table, entries that scale.

    One of a kind of its own may scale, group or route.

    Args:
        run: one pass over a row of tokens.
        layers: of the model.
    """
    other: set[str] = set()
    is_asking = False

    def look(
        layer: TrackedLayer, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> None:
        nonlocal is_asking
        if is_asking:
            return
        given = inputs[0] if inputs else next(iter(named.values()), None)
        is_asking = True
        try:
            if not isinstance(given, Tensor) or not isinstance(output, Tensor):
                is_plain = False
            elif layer.vectors:
                is_plain = all(
                    is_affine(v, partial(module, *inputs, **named)) for v in layer.vectors if v.module is module
                )
            elif isinstance(module, nn.Embedding):
                is_plain = looked_up(module, given, output, partial(module, *inputs, **named)) is not None
            else:
                is_plain = _is_linear(module, given, output)
        finally:
            is_asking = False
        if not is_plain:
            other.add(layer.name)

    handles = [
        module.register_forward_hook(partial(look, layer), with_kwargs=True)
        for layer in layers
        for module in layer.modules
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [layer for layer in layers if layer.name not in other]


def _is_linear(module: nn.Module, given: Tensor, output: Tensor) -> bool:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return True  # quantised: its own kernel computes it
    matrix = weight.T if isinstance(module, Conv1D) else weight
    if matrix.dim() != 2 or given.shape[-1] != matrix.shape[1] or output.shape != (*given.shape[:-1], len(matrix)):
        return False
    expected = nn.functional.linear(given.to(matrix.dtype), matrix, bias)
    tolerance = ROUNDING.get(output.dtype, ROUNDING_OF_HALF)
    return bool((expected - output).abs().max() <= tolerance * expected.abs().max()) if output.numel() else True
