"""LoRA adapters in a model: where their training began, and what they add to the weights they adapt."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ADAPTER_PARTS", "adapted_layers", "adapter_weights", "added_weights", "begin_again"]

# Where PEFT keeps the low-rank matrices of an adapter.
ADAPTER_PARTS = ("lora_A", "lora_B")
# What an adapter begins with is drawn once for all trainings.
SEED = 0


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

    At the beginning itself what is trained from there is drawn again, as PEFT does by default.

    Raises:
        ValueError: more than LoRA's matrices was trained, or they began otherwise, so that nobody knows where.
    """
    layers, weights = adapted_layers(model), adapter_weights(model)
    for adapter in getattr(model, "peft_config", {}).values():
        if str(getattr(adapter.peft_type, "value", adapter.peft_type)) != "LORA":
            raise ValueError(f"adapters of the kind {adapter.peft_type} have no known beginning, as those of LoRA have")
        if adapter.modules_to_save or adapter.bias != "none" or adapter.use_dora:
            raise ValueError("adapters that train more than the matrices of LoRA have no known beginning")
        if adapter.init_lora_weights is not True:
            raise ValueError(f"adapters that began as {adapter.init_lora_weights} have no known beginning")
    if len(weights) != 2 * len(layers):
        raise ValueError("adapters of other than linear layers, or several of one, have no known beginning")
    generator = torch.Generator().manual_seed(SEED)
    for layer in layers.values():
        own = _matrices(layer)
        assert own is not None
        own["lora_B"].mul_(1 - share)
        if share == 1:
            shape = own["lora_A"].shape
            reach = shape[1] ** -0.5
            own["lora_A"].copy_((2 * torch.rand(shape, generator=generator) - 1) * reach)


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
