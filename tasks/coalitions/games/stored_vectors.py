"""What sources are worth in parameters, found once and read by every later run with other queries."""

from collections.abc import Sequence

import numpy as np

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.layers import LayerStore
from dataworth.storage.place import Location
from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.estimation.semivalues import size_weights
from dataworth.tasks.coalitions.games.model_game import in_order
from dataworth.tasks.coalitions.games.newton_steps import NewtonSteps
from dataworth.tasks.coalitions.games.play import Sums
from dataworth.tasks.coalitions.games.sums_game import MAX_REPLAYED
from dataworth.tasks.coalitions.games.vectors import VectorDesign, VectorValues, vector_design, vector_values
from dataworth.tasks.coalitions.parts import GameParts
from dataworth.tasks.keeping import kept
from dataworth.tasks.progress import run_logger

__all__ = ["stored_vectors"]

ALGORITHM = 2
KIND = "values in parameters"


def stored_vectors(
    store: str, game: GameParts, names: Sequence[str], sums: Sums, sources: SourcesConfig
) -> VectorValues:
    """Read the values in parameters, found and stored first where they are not there yet.

    Args:
        store: root of the stores.
        game: whose sums they are.
        names: of the players, in their order.
        sums: of the players.
        sources: semivalue, budget, seed.

    Raises:
        InputError: the budget does not pay for two pairs of orders.
    """
    chosen = {"semivalue", "alpha", "beta", "pull", "budget", "seed"}
    parts = {
        KIND: ALGORITHM,
        "sums": [source.fingerprint for source in in_order(game.sums, names)],
        "bases": game.bases.fingerprint,
        "model": game.model.identity,
        "base": game.base,
        "damping": game.damping.model_dump(mode="json"),
        **sources.model_dump(include=chosen),
    }
    layers = LayerStore.open(game.bases).layers

    def build(root: Location, name: str) -> None:
        vectors = _found(sums, sources)
        matrices = _by_layer(vectors, [layer.gradients.shape[1] for layer in sums.layers])
        attributes = {**parts, "kind": KIND, "n_coalitions": vectors.n_coalitions, "exact": vectors.exact}
        # With the corpus goes what was made of it, when one of its documents is withdrawn.
        attributes["corpus"] = CorpusStore.open(game.corpus).contents_fingerprint
        LayerStore.write(root, name, layers, matrices, attributes)

    read = LayerStore.open(kept(store, "layers", parts, "the sources' values in parameters", build))
    samples, replicates = (
        [read.matrix(layer.name, kind) for layer in layers if kind in read.names(layer.name)]
        for kind in ("samples", "replicates")
    )
    whole = np.concatenate(samples, axis=2)
    none = np.zeros((0, *whole.shape[1:]))
    return VectorValues(
        whole,
        np.concatenate(replicates, axis=2) if replicates else none,
        int(read.attributes["n_coalitions"]),
        bool(read.attributes["exact"]),
    )


def _by_layer(values: VectorValues, sizes: Sequence[int]) -> list[dict[str, np.ndarray]]:
    ends = np.cumsum(sizes)
    named = {"samples": values.samples} | ({"replicates": values.replicates} if len(values.replicates) else {})
    return [
        {name: vectors[..., end - size : end] for name, vectors in named.items()}
        for size, end in zip(sizes, ends, strict=True)
    ]


def _found(sums: Sums, sources: SourcesConfig) -> VectorValues:
    n_sources = len(sums.layers[0].gradients)
    weights = size_weights(n_sources, sources.semivalue, sources.alpha, sources.beta)
    try:
        design = vector_design(n_sources, weights, sources.most_coalitions, np.random.default_rng(sources.seed))
    except ValueError as error:
        raise InputError(f"{setting('sources.budget')}: {error}") from None
    run_logger().info("finding the sources' values in parameters: %s coalitions", f"{design.n_coalitions:,}")
    steps = NewtonSteps(sums.layers, sums.damping, sums.largest)
    groups = sums.groups
    if groups is None or groups.n_groups < 2 or _too_many(design, groups.n_groups):
        return vector_values(steps, design)
    left = (NewtonSteps(groups.replicate(n), sums.damping, sums.largest) for n in range(groups.n_groups))
    return vector_values(steps, design, left)


def _too_many(design: VectorDesign, n_groups: int) -> bool:
    return n_groups * design.n_coalitions > MAX_REPLAYED
