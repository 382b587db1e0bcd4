"""Products of vectors with the curvature of the tracked layers, none of whose matrices is ever formed.

A tracked layer's output y = W x gets D x added to it, D = 0 of the shape of the layer's gradient. Derivatives with
respect to D are those with respect to W, in the layout of gradient rows, whatever the layer's kind: transposed,
quantised, or several modules of one weight.

Sources: Hessian products, Pearlmutter 1994; Gauss-Newton products J^T (H_out (J v)), Schraudolph 2002; J v by two
backward passes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, embedding, linear

from dataworth.tasks.capture.passes import predicting_states
from dataworth.tasks.capture.uses import looked_up, slope
from dataworth.tasks.corpus.batches import batches_by_length
from dataworth.tasks.corpus.examples import Examples
from dataworth.tasks.model.layers import TrackedLayer
from dataworth.tasks.model.plain import Model

__all__ = ["CurvatureKind", "CurvatureProducts"]

CurvatureKind = Literal["gauss_newton", "hessian"]
# The graph of a second derivative holds several times the activations of a pass, and the logits of all its targets.
SECOND_ORDER_TOKENS = 1024


class CurvatureProducts:
    """H v, H the mean over EXAMPLES of a second derivative of their summed losses, over all tracked layers together.

    Args:
        model: the checkpoint; it must be differentiable twice (attention kernels that are not are replaced by plain
            matrix products).
        examples: the mean is over them.
        kind: gauss_newton: sum over targets of J^T (diag(p) - p p^T) J, J of the logits: never negative; hessian: the
            loss' own second derivative.
        batch_tokens: most tokens of a pass.
    """

    def __init__(
        self,
        model: Model,
        examples: Examples,
        kind: CurvatureKind = "gauss_newton",
        batch_tokens: int = SECOND_ORDER_TOKENS,
    ) -> None:
        self.model, self.examples, self.kind, self.batch_tokens = model, examples, kind, batch_tokens
        self._sizes = [layer.n_outputs * layer.n_inputs for layer in model.layers]
        self._dtype = next(model.model.parameters()).dtype

    @property
    def n_columns(self) -> int:
        """Entries of a vector: those of a gradient row in the whole space."""
        return sum(self._sizes)

    def __call__(
        self, vectors: Float[np.ndarray, "m c"], numbers: Int[np.ndarray, " b"] | None = None
    ) -> Float[np.ndarray, "m c"]:
        """H v of each vector v, float64; products in the model's precision.

        Args:
            vectors: in the layout of gradient rows.
            numbers: the examples of the mean, with repetition; None: all.
        """
        chosen = np.arange(self.examples.n_examples) if numbers is None else numbers
        total = np.zeros(vectors.shape)
        if len(vectors) == 0:
            return total
        parts = self._split(vectors)
        for batch in batches_by_length(self.examples.lengths[chosen], self.batch_tokens, self.model.reading.batching):
            total += self._of_batch(parts, chosen[batch])
        return total / len(chosen)

    def _split(self, vectors: np.ndarray) -> list[list[Tensor]]:
        """Each vector as one matrix a layer."""
        moved = torch.from_numpy(vectors).to(self.model.device, self._dtype)
        return [
            [
                part.view(layer.n_outputs, layer.n_inputs)
                for part, layer in zip(vector.split(self._sizes), self.model.layers, strict=True)
            ]
            for vector in moved
        ]

    def _of_batch(self, vectors: Sequence[Sequence[Tensor]], numbers: np.ndarray) -> np.ndarray:
        """(m, c) sum over the examples of the batch."""
        inputs, mask, labels = self.examples.batch(numbers, self.model.device, self.model.reading.pad_token)
        body, head = self.model.halves
        with _added(self.model.layers, self._dtype, self.model.device) as moved, sdpa_kernel(SDPBackend.MATH):
            states, targets, _, _ = predicting_states(body(inputs, mask), labels)
            if len(targets) == 0:
                return np.zeros((len(vectors), self.n_columns))
            logits = head(states)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            product = _gauss_newton(logits, moved) if self.kind == "gauss_newton" else _hessian(logits, targets, moved)
            products = [torch.cat([part.flatten() for part in product(vector)]) for vector in vectors]
        return torch.stack(products).double().cpu().numpy()


Product = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def _gauss_newton(logits: Tensor, moved: Sequence[Tensor]) -> Product:
    # J^T u is linear in u, so that its derivative along v with respect to u is J v.
    along = torch.zeros_like(logits, requires_grad=True)
    backward = torch.autograd.grad(logits, moved, along, create_graph=True)
    p = logits.detach().softmax(dim=-1)

    def product(vector: Sequence[Tensor]) -> Sequence[Tensor]:
        (change,) = torch.autograd.grad(backward, along, vector, retain_graph=True)
        curved = p * (change - (p * change).sum(dim=-1, keepdim=True))
        return torch.autograd.grad(logits, moved, curved, retain_graph=True)

    return product


def _hessian(logits: Tensor, targets: Tensor, moved: Sequence[Tensor]) -> Product:
    loss = cross_entropy(logits, targets, reduction="sum")
    gradient = torch.autograd.grad(loss, moved, create_graph=True)

    def product(vector: Sequence[Tensor]) -> Sequence[Tensor]:
        return torch.autograd.grad(gradient, moved, vector, retain_graph=True)

    return product


@contextmanager
def _added(layers: Sequence[TrackedLayer], dtype: torch.dtype, device: torch.device) -> Iterator[list[Tensor]]:
    """The D of every layer, while D x is added to the layer's output."""
    moved = [
        torch.zeros(layer.n_outputs, layer.n_inputs, dtype=dtype, device=device, requires_grad=True) for layer in layers
    ]
    handles = [
        module.register_forward_hook(_adds(matrix, layer), with_kwargs=True)
        for matrix, layer in zip(moved, layers, strict=True)
        for module in layer.modules
    ]
    try:
        with torch.enable_grad():
            yield moved
    finally:
        for handle in handles:
            handle.remove()


def _adds(matrix: Tensor, layer: TrackedLayer) -> Callable[..., Tensor | None]:
    is_asking = False

    def add(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor | None:
        nonlocal is_asking
        if is_asking:
            return None
        given = inputs[0] if inputs else next(iter(named.values()))
        again = partial(module, *inputs, **named)
        is_asking = True
        try:
            if isinstance(module, nn.Embedding):
                found = looked_up(module, given, output, again)
                if found is None:
                    raise ValueError(f"layer {layer.name} gives something else than its rows")
                moved = embedding(found.ids, matrix) * found.counted[..., None]
                return output + (moved if found.scale is None else moved * found.scale).to(output.dtype)
            own = next((vector for vector in layer.vectors if vector.module is module), None)
            if own is not None:
                return output + (matrix[:, 0] * slope(own, again)).to(output.dtype)
        finally:
            is_asking = False
        weight, bias = (matrix[:, :-1], matrix[:, -1]) if layer.has_bias else (matrix, None)
        return output + linear(given.to(matrix.dtype), weight, bias).to(output.dtype)

    return add
