"""The step that makes the bases of a model's tracked layers."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from dataworth.storage.errors import InputError
from dataworth.storage.layers import LayerStore
from dataworth.storage.locations import location_of
from dataworth.storage.place import Location
from dataworth.storage.ref import StoreRef
from dataworth.storage.spelling import setting
from dataworth.tasks.keeping import kept
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.layers import coverage
from dataworth.tasks.model.loading import load
from dataworth.tasks.progress import run_logger
from dataworth.tasks.projection.bases import projections_of
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.logra import layer_table, projection_matrices

__all__ = ["make_bases"]

ALGORITHM = 1


def make_bases(
    store: str, model: ModelConfig, projection: ProjectionConfig, covariances: StoreRef | None = None
) -> StoreRef:
    """The bases of every tracked layer, made once for the same layers and parameters.

    Args:
        store: root of the stores.
        model: the checkpoint.
        projection: kind, ranks and seed, or bases made earlier.
        covariances: of the layers, for pca bases.

    Raises:
        InputError: bases made earlier do not belong to this model's layers.
    """
    loaded = load(model)
    _refuse_idle_patterns(projection, [layer.name for layer in loaded.layers])
    run_logger().warning(coverage(loaded.model, loaded.layers).sentence())
    if loaded.left_out:
        count, first = len(loaded.left_out), loaded.left_out[0]
        run_logger().warning("%s layers have no part in the loss of a text and are left out, such as %s", count, first)
    if loaded.reading.sentence:
        run_logger().warning(loaded.reading.sentence)
    shapes = [[layer.name, layer.n_inputs, layer.n_outputs, layer.has_bias] for layer in loaded.layers]
    if projection.bases is not None:
        return _earlier(location_of(projection.bases), shapes)
    settings = projection.model_dump(include={"kind"}) if projection.kind == "identity" else _settings(projection)
    parts = {"bases": ALGORITHM, "projection": settings, "layers": shapes}
    if covariances is not None:
        parts["covariances"] = covariances.fingerprint

    def build(root: Location, name: str) -> None:
        pairs = None
        if covariances is not None:
            fitted, sides = LayerStore.open(covariances), ("input_covariance", "output_covariance")
            inputs, outputs = ({e.name: fitted.matrix(e.name, side) for e in loaded.layers} for side in sides)
            pairs = {name: (inputs[name], outputs[name]) for name in inputs}
        projections = projections_of(loaded.layers, projection, pairs)
        run_logger().info("bases in %s", root / name)
        matrices = [projection_matrices(entry) for entry in projections]
        attributes = {"kind": "bases", "projection": settings}
        LayerStore.write(root, name, layer_table(projections), matrices, attributes)

    return kept(store, "layers", parts, "bases", build)


def _settings(projection: ProjectionConfig) -> dict[str, Any]:
    unused = {"bases", "seed"} if projection.kind == "pca" else {"bases"}
    return projection.model_dump(exclude=unused)


def _earlier(folder: Location, shapes: list[list[Any]]) -> StoreRef:
    """Bases made earlier, where they fit the layers."""
    if not LayerStore.exists(folder.parent, folder.name):
        raise InputError(f"{setting('projection.bases')} {folder}: holds no finished bases")
    bases = LayerStore(folder)
    if bases.attributes.get("kind") != "bases":
        raise InputError(f"{setting('projection.bases')} {folder}: holds no bases, but another kind of matrices")
    if [[layer.name, layer.n_inputs, layer.n_outputs, layer.has_bias] for layer in bases.layers] != shapes:
        raise InputError(f"{setting('projection.bases')} {folder}: made for other layers than this model's")
    return StoreRef(kind="layers", location=str(folder.absolute()), fingerprint=bases.fingerprint)


def _refuse_idle_patterns(projection: ProjectionConfig, layers: Sequence[str]) -> None:
    """A pattern of ranks that no layer matches is a slip of the pen.

    Raises:
        InputError: there is one.
    """
    for entry in projection.ranks:
        pattern = entry.rpartition("=")[0]
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            raise InputError(
                f"{setting('projection.ranks')} {entry}: the pattern matches none of the {len(layers)} "
                "tracked layers, such as "
                f"{layers[0]}"
            )
