"""The layers of a model whose gradients are kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.model.adapters import ADAPTER_PARTS

__all__ = ["Coverage", "TrackedLayer", "batch_second", "coverage", "tracked_layers"]


@dataclass(frozen=True)
class TrackedLayer:
    """A linear layer y = W x (+ b).

    Args:
        name: the module's name in the model, the first one where several share the weight.
        modules: linear modules of one weight, most often a single one: nn.Linear, Conv1D with its transposed weight,
            or a linear layer of another kind (quantised) that says `in_features` and `out_features`.
        n_inputs: columns of W, plus one for the bias where there is one (x then carries a trailing 1).
        n_outputs: rows of W.
    """

    name: str
    modules: tuple[nn.Module, ...]
    n_inputs: int
    n_outputs: int

    @property
    def module(self) -> nn.Module:
        """The module, the first one where several share the weight."""
        return self.modules[0]

    @property
    def has_bias(self) -> bool:
        return getattr(self.module, "bias", None) is not None


@dataclass(frozen=True)
class Coverage:
    """How much of a model its tracked layers hold.

    Args:
        n_parameters: of the whole model.
        n_tracked: of the tracked layers.
        untracked: module type → parameters not tracked that sit directly in modules of that type.
    """

    n_parameters: int
    n_tracked: int
    untracked: dict[str, int]

    def sentence(self) -> str:
        """What is left out, for a log line."""
        left = self.n_parameters - self.n_tracked
        largest = sorted(self.untracked.items(), key=lambda item: -item[1])
        parts = ", ".join(f"{kind} {count / self.n_parameters:.1%}" for kind, count in largest)
        return (
            f"{self.n_tracked / self.n_parameters:.1%} of {self.n_parameters:,} parameters are tracked; "
            f"{left / self.n_parameters:.1%} are not" + (f" ({parts})" if parts else "")
        )


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """(n_inputs, n_outputs) of a linear layer without its bias; None for any other module."""
    if isinstance(module, Conv1D):
        n_inputs, n_outputs = module.weight.shape
        return n_inputs, n_outputs
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    # A wrapper of a linear layer says the same sizes; the layer inside is the one to track.
    if all(isinstance(size, int) for size in sizes) and next(module.children(), None) is None:
        return sizes  # type: ignore[return-value]  # both are int here
    return None


def _linear_layers(model: nn.Module) -> list[TrackedLayer]:
    """Every linear layer of the body once, modules that share weight and bias together."""
    # A wrapper (PEFT's, DDP's) is no transformers model, but holds one.
    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    body = model if inner is None else inner.base_model
    head = None if inner is None else inner.get_output_embeddings()
    inside = {id(module) for module in body.modules()}
    by_weight: dict[tuple[int, int], TrackedLayer] = {}
    for name, module in model.named_modules():
        shape = _shape(module)
        if shape is None or id(module) not in inside or module is head:
            continue
        weight = getattr(module, "weight", None)
        bias = getattr(module, "bias", None)
        key = (id(module if weight is None else weight), id(bias))
        first = by_weight.get(key)
        shared = (module,) if first is None else (*first.modules, module)
        name = name if first is None else first.name
        by_weight[key] = TrackedLayer(name, shared, shape[0] + (bias is not None), shape[1])
    return list(by_weight.values())


def tracked_layers(
    model: nn.Module,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    adapters: Literal["auto", "only", "none"] = "auto",
) -> list[TrackedLayer]:
    """The linear layers of the transformer's body, in the model's order; the head and embeddings are not among them.

    Args:
        model: a transformers model, or any module (then its linear layers are all body).
        include: patterns of which a name must match one; none: every name.
        exclude: patterns of which a name must match none.
        adapters: `only`: the matrices of LoRA adapters; `none`: the layers they adapt and all others; `auto`: adapters
            where the model has any.

    Raises:
        InputError: a pattern matches no layer, or nothing is left to track.
    """
    layers = list(_of_kind(_linear_layers(model), adapters))
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(layer.name, pattern) for layer in layers):
            example = f", such as {layers[0].name}" if layers else ""
            raise InputError(
                f"the pattern {pattern!r} matches none of the model's {len(layers)} linear layers{example}"
            )
    kept = [
        layer
        for layer in layers
        if (not include or any(fnmatchcase(layer.name, pattern) for pattern in include))
        and not any(fnmatchcase(layer.name, pattern) for pattern in exclude)
    ]
    if not kept:
        raise InputError(f"no layer is left to track out of the model's {len(layers)} linear layers of the body")
    return kept


def _of_kind(layers: list[TrackedLayer], adapters: str) -> Iterator[TrackedLayer]:
    of_adapters = [any(part in ADAPTER_PARTS for part in layer.name.split(".")) for layer in layers]
    if adapters == "only" and not any(of_adapters):
        raise InputError(f"{setting('model.adapters')} only: the model has no LoRA adapters")
    wanted = any(of_adapters) and adapters != "none"
    return (layer for layer, is_adapter in zip(layers, of_adapters, strict=True) if is_adapter == wanted)


def coverage(model: nn.Module, layers: Sequence[TrackedLayer]) -> Coverage:
    """How many of the model's parameters the tracked layers hold; a quantised weight counts as what it stands for."""
    tracked = {id(parameter) for layer in layers for m in layer.modules for parameter in m.parameters(recurse=False)}
    untracked: dict[str, int] = {}
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in tracked | seen:
                kind = type(module).__name__
                untracked[kind] = untracked.get(kind, 0) + parameter.numel()
            seen.add(id(parameter))
    n_tracked = sum(layer.n_inputs * layer.n_outputs for layer in layers)
    return Coverage(n_tracked + sum(untracked.values()), n_tracked, untracked)


def batch_second(model: nn.Module) -> str | None:
    """Name of a module that takes its examples along the second axis (torch's default for attention and recurrence)."""
    for name, module in model.named_modules():
        if getattr(module, "batch_first", True) is False:
            return name or type(module).__name__
    return None
