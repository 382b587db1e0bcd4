"""The layers of a model whose gradients are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from storage.errors import InputError

__all__ = ["Coverage", "TrackedLayer", "coverage", "tracked_layers"]


@dataclass(frozen=True)
class TrackedLayer:
    """A linear layer y = W x (+ b).

    Args:
        name: the module's name in the model.
        module: nn.Linear, or Conv1D with its transposed weight.
        n_inputs: columns of W, plus one for the bias where there is one (x then carries a trailing 1).
        n_outputs: rows of W.
    """

    name: str
    module: nn.Module
    n_inputs: int
    n_outputs: int

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
            f"{left / self.n_parameters:.1%} are not ({parts})"
        )


def _layer(name: str, module: nn.Module) -> TrackedLayer | None:
    if isinstance(module, nn.Linear):
        n_inputs, n_outputs = module.in_features, module.out_features
    elif isinstance(module, Conv1D):
        n_inputs, n_outputs = module.weight.shape
    else:
        return None
    return TrackedLayer(name, module, n_inputs + (module.bias is not None), n_outputs)


def tracked_layers(model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[TrackedLayer]:
    """The linear layers of the transformer's body, in the model's order; the head and embeddings are not among them.

    Args:
        model: a transformers model, or any module (then its linear layers are all body).
        include: patterns of which a name must match one; none: every name.
        exclude: patterns of which a name must match none.

    Raises:
        InputError: a pattern matches no layer, or nothing is left to track.
    """
    body = model.base_model if isinstance(model, PreTrainedModel) else model
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    inside = {id(module) for module in body.modules()}
    layers = [
        layer
        for name, module in model.named_modules()
        if id(module) in inside and module is not head and (layer := _layer(name, module)) is not None
    ]
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


def coverage(model: nn.Module, layers: Sequence[TrackedLayer]) -> Coverage:
    """How many of the model's parameters the tracked layers hold."""
    tracked = {id(parameter) for layer in layers for parameter in layer.module.parameters(recurse=False)}
    untracked: dict[str, int] = {}
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in tracked | seen:
                kind = type(module).__name__
                untracked[kind] = untracked.get(kind, 0) + parameter.numel()
            seen.add(id(parameter))
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    return Coverage(n_parameters, n_parameters - sum(untracked.values()), untracked)
