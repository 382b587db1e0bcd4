"""The layers of a model whose gradients are kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.capture.hooks import Use
from dataworth.tasks.capture.uses import Vector
from dataworth.tasks.model.adapters import ADAPTER_PARTS
from dataworth.tasks.model.experts import ExpertMatrix, matrices_of

__all__ = ["Coverage", "TrackedLayer", "batch_second", "coverage", "tracked_layers"]


@dataclass(frozen=True)
class TrackedLayer:
    """Parameters W, of which a part of the model makes W x, for vectors x it reads.

    Args:
        name: the module's name in the model, the first one where several share the weight; of a vector the parameter's.
        modules: modules of one weight, most often a single one: nn.Linear, Conv1D with its transposed weight, a linear
            layer of another kind (quantised) that says `in_features` and `out_features`; nn.Embedding, whose rows are
            the outputs; or a module with a vector.
        n_inputs: columns of W, plus one for the bias where there is one (x then carries a trailing 1).
        n_outputs: rows of W.
        vectors: of each module, where W is one column: what its output is affine in, entry by entry.
        is_vocabulary: its outputs are the rows of a table, or tokens: too many for a covariance.
    """

    name: str
    modules: tuple[nn.Module, ...]
    n_inputs: int
    n_outputs: int
    vectors: tuple[Vector, ...] = ()
    is_vocabulary: bool = False

    @property
    def module(self) -> nn.Module:
        """The module, the first one where several share the weight."""
        return self.modules[0]

    @property
    def has_bias(self) -> bool:
        if self.vectors or any(isinstance(module, nn.Embedding) for module in self.modules):
            return False  # that of a head whose weight is also a table is a vector of its own
        return getattr(self.module, "bias", None) is not None

    @property
    def uses(self) -> tuple[Use, ...]:
        """What a capture hooks."""
        return self.vectors or self.modules

    @property
    def leaves(self) -> dict[str, tuple[Tensor, int | None]]:
        """Weight, and bias where there is one, by their names; of experts all of them, and which one it is.

        Quantised ones are not among them.
        """
        module = self.module
        if self.vectors:
            return {self.name: (module.get_parameter(self.vectors[0].parameter), None)}
        if isinstance(module, ExpertMatrix):
            above, number = self.name.rpartition(".")[0], module.number
            of_biases = {} if module.biases is None else {f"{above}_bias.{number}": (module.biases, number)}
            return {self.name: (module.stack, number), **of_biases}
        parts = ("weight", "bias") if self.has_bias else ("weight",)
        found = {name: getattr(module, name, None) for name in parts}
        return {
            f"{self.name}.{name}": (tensor, None)
            for name, tensor in found.items()
            if isinstance(tensor, Tensor) and tensor.is_floating_point()
        }

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Weight, and bias where there is one, as they are in memory."""
        return {name: leaf if number is None else leaf[number] for name, (leaf, number) in self.leaves.items()}

    @property
    def is_plain(self) -> bool:
        """Its parameters are numbers that can be read and moved: they are not quantised."""
        return len(self.parameters) == 1 + self.has_bias

    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        """(n_outputs, n_inputs) of tensors in the shapes of `parameters`: bias last."""
        first = tensors[0].T if self._is_transposed else tensors[0]
        columns = [first[:, None] if first.dim() == 1 else first, *(bias[:, None] for bias in tensors[1:])]
        return torch.cat(columns, dim=1)

    def tensors(self, matrix: Tensor) -> list[Tensor]:
        """The way back from `matrix`."""
        if self.vectors:
            return [matrix[:, 0]]
        weight, bias = (matrix[:, :-1], [matrix[:, -1]]) if self.has_bias else (matrix, [])
        return [weight.T if self._is_transposed else weight, *bias]

    @property
    def _is_transposed(self) -> bool:
        return isinstance(self.module, Conv1D) or (isinstance(self.module, ExpertMatrix) and self.module.is_transposed)


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


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules, experts that are one tensor as modules of their own."""
    for name, module in model.named_modules():
        yield name, module
        for inside, matrix in matrices_of(module):
            yield f"{name}.{inside}", matrix


def _of_expert(name: str, module: ExpertMatrix) -> TrackedLayer:
    return TrackedLayer(name, (module,), module.in_features + (module.biases is not None), module.out_features)


def _all_layers(model: nn.Module) -> list[TrackedLayer]:
    """Every linear layer, table of embeddings, vector and expert once, modules that share a parameter together."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    head = None if inner is None else inner.get_output_embeddings()
    found: dict[object, TrackedLayer] = {}

    def add(key: object, layer: TrackedLayer) -> None:
        first = found.setdefault(key, layer)
        if first is not layer:
            modules, vectors = (*first.modules, *layer.modules), (*first.vectors, *layer.vectors)
            is_vocabulary = first.is_vocabulary or layer.is_vocabulary
            found[key] = replace(first, modules=modules, vectors=vectors, is_vocabulary=is_vocabulary)

    for name, module in _modules(model):
        if isinstance(module, ExpertMatrix):
            add((id(module), 0), _of_expert(name, module))
            continue
        shape, apart = _shape(module), True
        is_table = isinstance(module, nn.Embedding)
        if isinstance(module, nn.Embedding):
            shape = (module.embedding_dim, module.num_embeddings)
        if shape is not None:
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            apart = id(weight) in tables
            n_inputs = shape[0] + (bias is not None and not apart)
            layer = TrackedLayer(name, (module,), n_inputs, shape[1], is_vocabulary=is_table or module is head)
            add((id(module if weight is None else weight), None if apart else id(bias)), layer)
        for part, parameter in module.named_parameters(prefix=name, recurse=False):
            inside = part.rpartition(".")[2]
            if parameter.dim() != 1 or not parameter.is_floating_point() or not apart or (inside == "weight" and shape):
                continue
            add(id(parameter), TrackedLayer(part, (module,), 1, len(parameter), (Vector(module, inside),)))
    return list(found.values())


def tracked_layers(
    model: nn.Module,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    adapters: Literal["auto", "only", "none"] = "auto",
    parameters: Literal["linear", "all"] = "linear",
) -> list[TrackedLayer]:
    """The layers to track, in the model's order.

    Args:
        model: a transformers model, or any module (then its linear layers are all body).
        include: patterns of which a name must match one; none: every name.
        exclude: patterns of which a name must match none.
        adapters: `only`: the matrices of LoRA adapters; `none`: the layers they adapt and all others; `auto`: adapters
            where the model has any.
        parameters: `linear`: linear layers of the transformer's body; `all`: also its head, tables of embeddings,
            vectors such as norms have, and experts that are one tensor (see dataworth.tasks.model.experts).

    Raises:
        InputError: a pattern matches no layer, or nothing is left to track.
    """
    kind = "layers" if parameters == "all" else "linear layers"
    layers = list(_of_kind(_all_layers(model) if parameters == "all" else _linear_layers(model), adapters))
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(layer.name, pattern) for layer in layers):
            example = f", such as {layers[0].name}" if layers else ""
            raise InputError(f"the pattern {pattern!r} matches none of the model's {len(layers)} {kind}{example}")
    kept = [
        layer
        for layer in layers
        if (not include or any(fnmatchcase(layer.name, pattern) for pattern in include))
        and not any(fnmatchcase(layer.name, pattern) for pattern in exclude)
    ]
    if not kept:
        raise InputError(f"no layer is left to track out of the model's {len(layers)} {kind}")
    return kept


def _of_kind(layers: list[TrackedLayer], adapters: str) -> Iterator[TrackedLayer]:
    of_adapters = [any(part in ADAPTER_PARTS for part in layer.name.split(".")) for layer in layers]
    if adapters == "only" and not any(of_adapters):
        raise InputError(f"{setting('model.adapters')} only: the model has no LoRA adapters")
    wanted = any(of_adapters) and adapters != "none"
    return (layer for layer, is_adapter in zip(layers, of_adapters, strict=True) if is_adapter == wanted)


def coverage(model: nn.Module, layers: Sequence[TrackedLayer]) -> Coverage:
    """How many of the model's parameters the tracked layers hold; a quantised weight counts as what it stands for."""
    tracked = {id(parameter) for layer in layers for parameter in _held(layer)}
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


def _held(layer: TrackedLayer) -> Iterator[Tensor]:
    """Parameters that a layer is made of, quantised ones as they are kept."""
    if layer.vectors or layer.is_vocabulary or isinstance(layer.module, ExpertMatrix):
        yield from (leaf for leaf, _ in layer.leaves.values())
    else:
        yield from (parameter for module in layer.modules for parameter in module.parameters(recurse=False))


def batch_second(model: nn.Module) -> str | None:
    """Name of a module that takes its examples along the second axis (torch's default for attention and recurrence)."""
    for name, module in model.named_modules():
        if getattr(module, "batch_first", True) is False:
            return name or type(module).__name__
    return None
