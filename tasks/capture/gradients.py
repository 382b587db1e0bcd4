"""Per-example projected gradients of layers, caught around any `loss.backward()`.

The forward pass keeps projected activations (tokens x k, not tokens x d); the backward pass turns output gradients into
projected gradients as they pass.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from types import TracebackType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dataworth.storage.spelling import setting
from dataworth.tasks.capture.hooks import CaptureError, LayerCapture, SideName, Sides, Use

__all__ = ["GradientCapture", "Projection"]

# Of rows: whole gradients of one example of a large model are as large as its weights.
BYTES_AT_ONCE = 2**30


@runtime_checkable
class Projection(Sides, Protocol):
    """What capture of gradients needs of a layer's projection (see dataworth.tasks.projection.logra)."""

    @property
    def n_columns(self) -> int: ...

    def gradient(self, outputs: Tensor, inputs: Tensor) -> Tensor: ...


class GradientCapture(LayerCapture):
    """Context manager that fills one row of projected gradients an example.

    The loss that is back-propagated must be a SUM over examples, so that each row is its own example's gradient. A
    layer called several times contributes the sum of its calls. Gradients add up until `rows()` takes them.

    Args:
        modules: the layers (see LayerCapture).
        projections: one a layer, in the same order; they own consecutive columns of a row.
        dtype: of the rows.
        may_idle: a layer may have no part in an example's loss, as an expert that is sent no token: its gradient is 0.
    """

    def __init__(
        self,
        modules: Sequence[Use | tuple[Use, ...]],
        projections: Sequence[Projection],
        dtype: torch.dtype = torch.float32,
        *,
        may_idle: bool = False,
    ) -> None:
        super().__init__(modules, projections)
        self._projections = list(projections)
        ends = [0, *accumulate(projection.n_columns for projection in projections)]
        self._columns = [slice(first, end) for first, end in pairwise(ends)]
        self._n_columns = ends[-1]
        self._dtype, self._may_idle = dtype, may_idle
        self._rows: Tensor | None = None
        self._reached: set[int] = set()

    @property
    def most_rows(self) -> int:
        """Examples whose rows are held at a time: as many as take BYTES_AT_ONCE, at least one."""
        return max(1, BYTES_AT_ONCE // (self._n_columns * self._dtype.itemsize))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._rows = None
        self._reached.clear()

    def _arrived(self, number: int, side: SideName, kept: Tensor, projected: Tensor) -> None:
        outputs, inputs = (projected, kept) if side == "output" else (kept, projected)
        block = self._projections[number].gradient(outputs, inputs)
        if self._rows is None:
            self._rows = torch.zeros(len(block), self._n_columns, dtype=self._dtype, device=block.device)
        if len(block) != len(self._rows):
            raise CaptureError(
                f"layer {self._names[number]} reads something of {len(block)} examples where others read "
                f"{len(self._rows)}: exclude it with {setting('model.exclude')}"
            )
        target = self._rows[:, self._columns[number]]
        if number in self._reached:
            target.add_(block)
        else:
            target.copy_(block)
            self._reached.add(number)

    def rows(self) -> Tensor:
        """(n_examples, n_columns) gradients since the last call, which are then forgotten.

        Raises:
            CaptureError: nothing was back-propagated, or a layer had no part in the loss.
        """
        if self._rows is None:
            raise CaptureError(
                "no gradient arrived: call loss.backward() inside the capture first (and torch.compiler.reset() before "
                "it, if the model was compiled outside)"
            )
        idle = next((name for number, name in enumerate(self._names) if number not in self._reached), None)
        is_silent = self._targets is not None and not len(self._targets.examples)  # no token has a loss
        if idle is not None and not (self._may_idle or is_silent):
            raise CaptureError(f"layer {idle} has no part in the loss: exclude it with {setting('model.exclude')}")
        rows, self._rows, self._shape = self._rows, None, None
        self._reached.clear()
        return rows
