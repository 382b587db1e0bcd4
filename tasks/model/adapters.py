"""LoRA adapters in a model: where their training began, and what they add to the weights they adapt."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ADAPTER_PARTS", "adapted_layers", "adapter_weights", "added_weights", "begin_again"]

# Where PEFT keeps the low-rank matrices of an adapter.
ADAPTER_PARTS = ("lora_A", "lora_B")
SECOND = "lora_B"
# What an adapter begins with is drawn once for all trainings.
SEED = 0
# Settings of what is trained beside the matrices.
MORE = ("modules_to_save", "use_dora", "trainable_token_indices", "target_parameters", "alora_invocation_tokens")


def adapter_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The low-rank matrices of a model by name; none of a model without adapters."""
    named = model.named_parameters()
    return {name: weight for name, weight in named if any(part in ADAPTER_PARTS for part in name.split("."))}


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Modules with adapters by name."""
    return {name: module for name, module in model.named_modules() if _matrices(module) is not None}


def added_weights(layer: Any, matrices: Mapping[str, Tensor] | None = None) -> Tensor:
    """What adapters add to the weight of a layer, of its shape.

    Args:
        layer: of `adapted_layers`.
        matrices: "lora_A" and "lora_B" instead of its own.
    """
    own = _matrices(layer)
    if own is None:
        raise ValueError("a module without adapters adds nothing")
    kept = {part: weight.data for part, weight in own.items()}
    try:
        for part, other in (matrices or {}).items():
            own[part].data = other.to(kept[part])
        (active,) = layer.lora_A
        added: Tensor = layer.get_delta_weight(active).detach()
        return added
    finally:
        for part, weight in own.items():
            weight.data = kept[part]


@torch.no_grad()
def begin_again(model: nn.Module, share: float) -> None:
    """Move adapters a share of the way back to where training began, in place: there they add nothing.

    Of each pair of matrices the second begins as zero. The first was drawn, nobody knows how, and at the beginning it
    is drawn again, as PEFT does by default: trainings from there go elsewhere in the weights than the model did.

    Raises:
        ValueError: more than pairs of matrices was trained, or they began otherwise, so that nobody knows where.
    """
    layers = adapted_layers(model)
    for adapter in getattr(model, "peft_config", {}).values():
        _refuse_other(adapter)
    if sum("lora_" in name for name, _ in model.named_parameters()) != 2 * len(layers):
        raise ValueError("adapters of other than linear layers, or several of one, have no known beginning")
    adapted = {id(layer.base_layer.weight): layer.base_layer for layer in layers.values()}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if adapted.get(id(weight), module) is not module:
                raise ValueError("adapters of a weight that another layer shares cannot be put into it")
    generator = torch.Generator().manual_seed(SEED)
    for layer in layers.values():
        for part, matrix in (_matrices(layer) or {}).items():
            if part == SECOND:
                matrix.mul_(1 - share)
            elif share == 1:
                even = 2 * torch.rand(matrix.shape, generator=generator) - 1
                matrix.copy_(even * matrix.shape[1] ** -0.5)


def _refuse_other(adapter: Any) -> None:
    """As `begin_again`, by an adapter's settings."""
    kind = str(getattr(adapter.peft_type, "value", adapter.peft_type))
    if kind != "LORA":
        raise ValueError(f"adapters of the kind {kind} have no known beginning, as those of LoRA have")
    if adapter.bias != "none" or any(getattr(adapter, field, None) for field in MORE):
        raise ValueError("adapters that train more than the matrices of LoRA have no known beginning")
    if adapter.init_lora_weights not in (True, "gaussian"):
        raise ValueError(f"adapters that began as {adapter.init_lora_weights} have no known beginning")


def _matrices(module: Any) -> dict[str, nn.Parameter] | None:
    """Of a layer with one adapter; None of other modules."""
    parts = [getattr(module, part, None) for part in ADAPTER_PARTS]
    if not all(isinstance(part, nn.ModuleDict) and len(part) == 1 for part in parts):
        return None
    found: dict[str, nn.Parameter] = {}
    for name, part in zip(ADAPTER_PARTS, parts, strict=True):
        (matrix,) = part.values()  # type: ignore[union-attr]  # of a ModuleDict, see above
        if not isinstance(matrix, nn.Linear):
            return None
        found[name] = matrix.weight  # type: ignore[assignment]  # of a linear layer
    return found
