"""The newton game of a model: its stores read into sums by layer, its queries expanded or evaluated.

Apart from task.py the one module of the room that knows stores and models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.layers import LayerStore
from dataworth.storage.ref import StoreRef
from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.games.expansion import QueryExpansion
from dataworth.tasks.coalitions.games.groups import SourceGroups
from dataworth.tasks.coalitions.games.newton_steps import LayerSums, endpoint_matched, estimated_damping
from dataworth.tasks.coalitions.games.play import Play
from dataworth.tasks.coalitions.parts import GameParts
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.curvature.config import DampingConfig
from dataworth.tasks.curvature.damping import damping
from dataworth.tasks.curvature.dense import eigendecomposition
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.displacement import base_displacements, displaced
from dataworth.tasks.model.loading import LoadedModel, base_weights, load
from dataworth.tasks.projection.logra import (
    LayerProjection,
    orthonormal_coordinates,
    orthonormal_sides,
    projected_weights,
    stored_projections,
)

__all__ = ["MeasuredLosses", "ModelSums", "in_order", "model_sums", "play_of", "query_expansion"]

# A coalition's parameters lie between those trained on everything and where training began, or little farther.
TRUST = 1.5


@dataclass(frozen=True)
class ModelSums:
    """The sums by source of a model, in coordinates of orthonormal bases, ready for steps.

    Args:
        layers: endpoint-matched where it is known what training began from.
        damping: lambda, and where it is from.
        damping_origin: a few words.
        largest: trust region; None where nothing bounds a step.
        coordinates: R of each layer, None where stored gradients are such coordinates already.
        columns: of each layer in a stored row.
        groups: the sums by group of documents, where the stores keep them apart.
    """

    layers: list[LayerSums]
    damping: float
    damping_origin: str
    largest: float | None
    coordinates: list[np.ndarray | None]
    columns: list[slice]
    groups: SourceGroups | None = None

    def turned(self, rows: np.ndarray) -> np.ndarray:
        """(…, D) stored rows as coordinates of the orthonormal bases, float64."""
        parts = [rows[..., where].astype(np.float64) for where in self.columns]
        turned = [part if r is None else part @ r for part, r in zip(parts, self.coordinates, strict=True)]
        return np.concatenate(turned, axis=-1)


def model_sums(
    sources: Sequence[StoreRef], bases: StoreRef, model: ModelConfig, pull: float | None, config: DampingConfig
) -> ModelSums:
    """Read the sums of every source, turn them, and match their endpoints.

    Args:
        sources: one store a source, in the order of the players.
        bases: of the projection.
        model: the checkpoint, and its base.
        pull: lambda where it is given.
        config: damping where neither a pull is given nor one can be estimated.

    Raises:
        InputError: the projection sketches both sides together.
    """
    basis_store = LayerStore.open(bases)
    projections = stored_projections(basis_store)
    if any(projection.sketch is not None for projection in projections):
        raise InputError(
            f"{setting('projection.kind')} factgrass: games over sources need the two sides apart; pass another one"
        )
    coordinates = [orthonormal_coordinates(projection) for projection in projections]
    stores = [LayerStore.open(source) for source in sources]
    names = [layer.name for layer in basis_store.layers]
    layers = _layer_sums(stores, names, coordinates)
    n_examples = np.array([store.attributes["n_examples"] for store in stores])
    columns = [layer.columns for layer in basis_store.layers]
    if model.base is None:
        chosen = (pull, "given") if pull is not None else (_relative(layers, config), "no base is known: by damping")
        groups = _groups(stores, names, coordinates, layers, list)
        return ModelSums(layers, chosen[0], chosen[1], None, coordinates, columns, groups)
    origin = _origin(load(model), model, projections, coordinates)
    estimated = estimated_damping(layers, origin)
    if pull is not None:
        chosen = (pull, "given")
    elif estimated > 0:
        chosen = (estimated, "estimated from where training began")
    else:
        chosen = (_relative(layers, config), "the estimate is not positive: by damping")

    def matched(sums: Sequence[LayerSums]) -> list[LayerSums]:
        return endpoint_matched(sums, origin, n_examples, chosen[0])

    largest = TRUST * float(np.sqrt(sum(start @ start for start in origin)))
    groups = _groups(stores, names, coordinates, layers, matched)
    return ModelSums(matched(layers), chosen[0], chosen[1], largest, coordinates, columns, groups)


def _layer_sums(
    stores: Sequence[LayerStore],
    names: Sequence[str],
    coordinates: Sequence[np.ndarray | None],
    group: int | None = None,
) -> list[LayerSums]:
    """The stored sums of every layer in the coordinates, of all groups of documents together or of one."""

    def read(store: LayerStore, layer: str, name: str) -> np.ndarray:
        stored: np.ndarray = store.matrix(layer, name, group)
        return stored.sum(axis=0) if group is None else stored

    layers = []
    for name, turn in zip(names, coordinates, strict=True):
        gradients = np.stack([read(store, name, "gradient") for store in stores])
        curvatures = np.stack([read(store, name, "curvature") for store in stores])
        if turn is not None:
            gradients, curvatures = gradients @ turn, turn @ curvatures @ turn
        layers.append(LayerSums(gradients, curvatures))
    return layers


def _groups(
    stores: Sequence[LayerStore],
    names: Sequence[str],
    coordinates: Sequence[np.ndarray | None],
    layers: Sequence[LayerSums],
    matched: Callable[[Sequence[LayerSums]], list[LayerSums]],
) -> SourceGroups:
    return SourceGroups(
        np.stack([store.matrix(names[0], "counts") for store in stores]),
        np.stack([store.matrix(names[0], "curvature_counts") for store in stores]),
        layers,
        lambda group: _layer_sums(stores, names, coordinates, group),
        matched,
    )


def _relative(layers: Sequence[LayerSums], config: DampingConfig) -> float:
    """The damping of a configuration, on the eigenvalues of the summed curvature of all layers."""
    eigenvalues = np.concatenate([eigendecomposition(layer.curvatures.sum(axis=0))[0] for layer in layers])
    return damping(eigenvalues, config)


def _origin(
    loaded: LoadedModel,
    model: ModelConfig,
    projections: Sequence[LayerProjection],
    coordinates: Sequence[np.ndarray | None],
) -> list[np.ndarray]:
    """theta_0 - theta* of each layer, in the coordinates."""
    names = [name for layer in loaded.layers for name in layer.parameters]
    away = base_displacements(loaded.layers, base_weights(model, names))
    displacements = []
    for amount, projection, turn in zip(away, projections, coordinates, strict=True):
        start = projected_weights(projection, amount)
        displacements.append(start if turn is None else start @ turn)
    return displacements


def query_expansion(
    sums: ModelSums, queries: CorpusStore, gradients: StoreRef, factors: StoreRef | None, losses: np.ndarray
) -> QueryExpansion:
    """Losses of the queries to first or, with factors, to second order.

    Args:
        sums: of the model.
        queries: one window each.
        gradients: their gradient store.
        factors: their rows of curvature.
        losses: (n_queries,) at the checkpoint.
    """
    rows = np.concatenate(GradientStore.open(gradients).rows_of(queries.contents))
    if factors is None:
        return QueryExpansion(losses, sums.turned(rows), None)
    store = LayerStore.open(factors)
    labels = np.concatenate([store.matrix(layer.name, "factors") for layer in store.layers], axis=2)
    return QueryExpansion(losses, sums.turned(rows), sums.turned(labels))


@dataclass(frozen=True)
class MeasuredLosses:
    """Losses of the queries at steps from theta*, by forward passes; what a worker of a cluster is sent.

    Args:
        model: the checkpoint.
        bases: of the projection P.
        queries: one window each.
    """

    model: ModelConfig
    bases: StoreRef
    queries: StoreRef

    def __call__(self, steps: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m q"]:
        """(m, n_queries) nats at theta* + P^T step."""
        loaded, queries = load(self.model), CorpusStore.open(self.queries)
        sides = [orthonormal_sides(projection) for projection in stored_projections(LayerStore.open(self.bases))]
        losses = np.empty((len(steps), queries.n_examples))
        for row, step in enumerate(steps):
            amounts, first = [], 0
            for outputs, inputs in sides:
                size = len(outputs) * len(inputs)
                block = torch.from_numpy(step[first : first + size]).view(len(outputs), len(inputs))
                amounts.append(outputs.T @ block @ inputs)
                first += size
            with displaced(loaded.layers, amounts):
                losses[row] = query_losses(loaded, queries)
        return losses


def play_of(game: GameParts, names: Sequence[str], pull: float | None) -> Play:
    """What games of some sources are played on, read from the stores.

    Args:
        game: stores of it.
        names: of the players, in their order.
        pull: lambda where it is given.

    Raises:
        InputError: the model cannot be loaded, or a source has no example.
    """
    loaded, queries = load(game.model), CorpusStore.open(game.queries)
    sums = model_sums(in_order(game.sums, names), game.bases, game.model, pull, game.damping)
    losses = query_losses(loaded, queries)
    return Play(
        sums=sums,
        expansion=query_expansion(sums, queries, game.query_gradients, game.factors, losses),
        losses_at=MeasuredLosses(game.model, game.bases, game.queries),
        base_losses=None if game.model.base is None else query_losses(load(game.model, 1.0), queries),
    )


def in_order(stores: Mapping[str, StoreRef], names: Sequence[str]) -> list[StoreRef]:
    """The stores of some sources.

    Raises:
        InputError: a source has no document with the two tokens an example needs.
    """
    missing = [name for name in names if name not in stores]
    if missing:
        raise InputError(
            f"source {missing[0]!r} has no document that can be valued: leave it out, or pass "
            f"{setting('sources.game')} additive"
        )
    return [stores[name] for name in names]
