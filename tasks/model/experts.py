"""Experts that are one tensor, each a layer of its own.

Most mixtures of experts in transformers keep the matrices of all experts of a block in one parameter, and multiply by
them in one kernel. Here the same sums are made one expert after another, each matrix a module that capture can hook and
that says which tokens were sent to it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dataworth.tasks.capture.uses import Routed

__all__ = ["ExpertMatrix", "experts_as_layers", "matrices_of"]

NAME = "dataworth"
KEPT = "_dataworth_matrices"


class ExpertMatrix(Routed):
    """The matrix of one expert, and its bias where it has one: y = W x + b.

    Args:
        experts: a module of transformers that holds those of all experts of a block.
        name: of the parameter, (experts, …).
        number: of the expert.
    """

    def __init__(self, experts: nn.Module, name: str, number: int) -> None:
        super().__init__()
        self._experts = (experts,)  # which is above this one in the model, not below
        self.name, self.number = name, number
        self.is_transposed = bool(getattr(experts, "is_transposed", False))
        n_first, n_second = self.stack.shape[1:]
        self.out_features, self.in_features = (n_second, n_first) if self.is_transposed else (n_first, n_second)

    @property
    def stack(self) -> nn.Parameter:
        """The parameter of all experts."""
        return self._experts[0].get_parameter(self.name)

    @property
    def biases(self) -> nn.Parameter | None:
        """Of all experts."""
        return self._experts[0]._parameters.get(f"{self.name}_bias")

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs)."""
        own = self.stack[self.number]
        return own.T if self.is_transposed else own

    @property
    def bias(self) -> Tensor | None:
        """(outputs,)."""
        biases = self.biases
        return None if biases is None else biases[self.number]

    def forward(self, vectors: Tensor) -> Tensor:
        """(r, inputs) → (r, outputs)."""
        return linear(vectors, self.weight, self.bias)


def experts_as_layers(model: nn.Module) -> None:
    """Let every expert of a model be a layer of its own, where transformers keeps them together."""
    found = False
    for module in model.modules():
        names = _names(module)
        if names:
            n_experts = module.get_parameter(names[0]).shape[0]
            matrices = {name: [ExpertMatrix(module, name, number) for number in range(n_experts)] for name in names}
            object.__setattr__(module, KEPT, matrices)  # no modules of its own: nothing is saved or moved twice
            module.config._experts_implementation = NAME  # type: ignore[union-attr]  # transformers'
            found = True
    if found:
        ALL_EXPERTS_FUNCTIONS.register(NAME, _forward)


def _names(module: nn.Module) -> list[str]:
    """The parameters that hold matrices of all experts; none of a module of another kind."""
    if not all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed", "_apply_gate", "config")):
        return []
    names = ["gate_up_proj" if module.has_gate else "up_proj", "down_proj"]
    parameters = [module._parameters.get(name) for name in names]
    is_plain = all(p is not None and p.dim() == 3 and p.is_floating_point() for p in parameters)
    return names if is_plain else []


def matrices_of(module: nn.Module) -> Iterator[tuple[str, ExpertMatrix]]:
    """(name within the module, matrix) of every expert; nothing where `experts_as_layers` found none."""
    for name, matrices in getattr(module, KEPT, {}).items():
        for matrix in matrices:
            yield f"{name}.{matrix.number}", matrix


def _forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What transformers calls: (tokens, width) states, (tokens, k) experts of each, and their weights."""
    matrices = getattr(self, KEPT)
    first, last = matrices.values()
    total = torch.zeros_like(hidden_states)
    for number in top_k_index.unique().tolist():
        if not 0 <= number < len(first):  # of another device's experts
            continue
        tokens, place = torch.where(top_k_index == number)
        inner = first[number].of_tokens(hidden_states[tokens], tokens, len(hidden_states))
        inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
        outer = last[number].of_tokens(inner, tokens, len(hidden_states))
        if getattr(self, "has_post_expert_norm", False):
            outer = self.post_expert_norm(outer)
        outer = outer * top_k_weights[tokens, place, None]
        total = total.index_add(0, tokens, outer.to(total.dtype))
    return total
