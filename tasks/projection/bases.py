"""Projections: random, keyed so that they are the same in any process, on any device, in any order of layers; and PCA.

Sources: LoGra, Choe et al. 2024 (arXiv 2405.13954), section 3.1, with rows scaled so that inner products keep their
expectation; coordinate masks and FactGraSS, Hu et al. 2025 (arXiv 2505.18976).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int

from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.logra import LayerProjection
from dataworth.tasks.projection.sides import BasisSide, CoordinateSide, IdentitySide, Side
from dataworth.tasks.projection.sketch import SparseSketch

__all__ = [
    "Covariances",
    "LayerShape",
    "covariance_space",
    "layer_projection",
    "layer_rank",
    "leading_basis",
    "projections_of",
    "random_basis",
    "random_coordinates",
]

SideName = Literal["input", "output"]
Covariances = tuple[np.ndarray, np.ndarray]  # of a layer's inputs and of its output gradients

# FactGraSS masks each side to this multiple of the rank, and sketches the product of both down to rank squared. At 2
# the product itself costs most of what masking saves; at 1.5 the whole is more than twice as cheap as random bases.
FACTGRASS_WIDTH = 1.5


@runtime_checkable
class LayerShape(Protocol):
    """What a projection has to know of a layer (see dataworth.tasks.model.layers.TrackedLayer)."""

    @property
    def name(self) -> str: ...

    @property
    def n_inputs(self) -> int: ...

    @property
    def n_outputs(self) -> int: ...

    @property
    def has_bias(self) -> bool: ...

    @property
    def is_vocabulary(self) -> bool: ...


def _generator(layer: str, part: str, seed: int) -> np.random.Generator:
    key = hashlib.sha256(f"{seed}\0{layer}\0{part}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(key[:16], "little")))


def random_basis(layer: str, side: SideName, size: int, rank: int, seed: int) -> Float[np.ndarray, "k size"]:
    """Gaussian rows with variance 1/k, so that E[(A x) . (A y)] = x . y.

    Args:
        layer: the layer's name.
        side: of the layer.
        size: dimensions of the side.
        rank: k, dimensions to keep.
        seed: of the run.

    Returns:
        (k, size) float32.
    """
    return (_generator(layer, side, seed).standard_normal((rank, size)) / np.sqrt(rank)).astype(np.float32)


def random_coordinates(layer: str, side: SideName, size: int, rank: int, seed: int) -> Int[np.ndarray, " k"]:
    """A subset of k of the coordinates of a side, increasing; parameters as in `random_basis`."""
    chosen = _generator(layer, f"{side} coordinates", seed).choice(size, rank, replace=False)
    return np.sort(chosen).astype(np.int64)


def leading_basis(covariance: Float[np.ndarray, "size size"], rank: int) -> Float[np.ndarray, "k size"]:
    """Eigenvectors of the k largest eigenvalues, one a row, float32; decomposed in float64.

    The largest entry of each is positive, so that the same covariance gives the same basis anywhere.

    Source: LoGra, Choe et al. 2024 (arXiv 2405.13954), section 3.1: the KFAC eigenvectors as bases.
    """
    _, vectors = np.linalg.eigh(covariance.astype(np.float64))
    basis = vectors[:, ::-1][:, :rank].T
    largest = np.abs(basis).argmax(axis=1)
    return (basis * np.sign(basis[np.arange(rank), largest])[:, None]).astype(np.float32)


def layer_rank(layer: str, size: int, config: ProjectionConfig) -> int:
    """Dimensions kept of a side of `size` dimensions, by the first pattern of `ranks` that matches, else `rank`."""
    for entry in config.ranks:
        pattern, _, rank = entry.rpartition("=")
        if fnmatchcase(layer, pattern):
            return min(size, max(1, round(float(rank) * size) if "." in rank else int(rank)))
    return min(size, config.rank)


def _side(
    layer: str, side: SideName, size: int, rank: int, config: ProjectionConfig, covariance: np.ndarray | None = None
) -> Side:
    if config.kind == "identity" or rank >= size:
        return IdentitySide(size)
    if config.kind == "pca":
        if covariance is None:
            raise ValueError(f"pca bases of layer {layer} need its covariances")
        return BasisSide(torch.from_numpy(leading_basis(covariance, rank)))
    if config.kind == "random":
        return BasisSide(torch.from_numpy(random_basis(layer, side, size, rank, config.seed)))
    return CoordinateSide(torch.from_numpy(random_coordinates(layer, side, size, rank, config.seed)), size)


def layer_projection(
    layer: str,
    n_inputs: int,
    n_outputs: int,
    has_bias: bool,
    config: ProjectionConfig,
    covariances: Covariances | None = None,
    is_vocabulary: bool = False,
) -> LayerProjection:
    """The projection of one layer; a side that would keep everything is left as it is.

    Args:
        layer: its name.
        n_inputs: dimensions of its input, one more where it has a bias.
        n_outputs: dimensions of its output.
        has_bias: of the layer.
        config: kind, rank and seed.
        covariances: of its inputs and of its output gradients, for pca bases.
        is_vocabulary: its outputs are tokens. Where others are pca, theirs are random: the leading eigenvectors would
            be the most frequent tokens, and say nothing of the rare ones, in which texts differ.
    """
    k_in, k_out = layer_rank(layer, n_inputs, config), layer_rank(layer, n_outputs, config)
    if config.kind != "factgrass":
        of_inputs, of_outputs = covariances or (None, None)
        input_side = _side(layer, "input", n_inputs, k_in, config, of_inputs)
        by = config.model_copy(update={"kind": "random"}) if is_vocabulary and config.kind == "pca" else config
        output_side = _side(layer, "output", n_outputs, k_out, by, of_outputs)
        return LayerProjection(layer, n_inputs, n_outputs, has_bias, input_side, output_side)
    input_side = _side(layer, "input", n_inputs, min(n_inputs, round(FACTGRASS_WIDTH * k_in)), config)
    output_side = _side(layer, "output", n_outputs, min(n_outputs, round(FACTGRASS_WIDTH * k_out)), config)
    n_entries = input_side.size * output_side.size
    generator = _generator(layer, "sketch", config.seed)
    sketch = SparseSketch(
        column=torch.from_numpy(generator.integers(0, k_in * k_out, n_entries)),
        sign=torch.from_numpy(generator.choice(np.array([-1.0, 1.0], np.float32), n_entries)),
        size=k_in * k_out,
    )
    return LayerProjection(layer, n_inputs, n_outputs, has_bias, input_side, output_side, sketch)


def projections_of(
    layers: Sequence[LayerShape], config: ProjectionConfig, covariances: Mapping[str, Covariances] | None = None
) -> list[LayerProjection]:
    """The projection of every layer.

    Args:
        layers: tracked layers of a model.
        config: kind, rank and seed.
        covariances: by layer name, for pca bases.
    """
    return [_of(layer, config, (covariances or {}).get(layer.name)) for layer in layers]


def covariance_space(layers: Sequence[LayerShape], config: ProjectionConfig) -> list[LayerProjection]:
    """The space in which covariances are fitted: the whole one, but for outputs that are tokens where others are pca.

    Args:
        layers, config: as in `projections_of`.
    """
    whole = config.model_copy(update={"kind": "identity"})
    is_pca = config.kind == "pca"
    found = []
    for layer in layers:
        entry = _of(layer, whole)
        if is_pca and layer.is_vocabulary:
            random = _of(layer, config.model_copy(update={"kind": "random"}))
            entry = replace(entry, output_side=random.output_side)
        found.append(entry)
    return found


def _of(layer: LayerShape, config: ProjectionConfig, covariances: Covariances | None = None) -> LayerProjection:
    shape = (layer.name, layer.n_inputs, layer.n_outputs, layer.has_bias)
    return layer_projection(*shape, config, covariances, layer.is_vocabulary)
