"""Prefect task that makes the bases of a model's tracked layers."""

from pathlib import Path

from prefect import task

from storage.layers import LayerStore
from storage.locations import StoreFolders
from storage.ref import StoreRef, fingerprint
from tasks.model.config import ModelConfig
from tasks.model.layers import coverage
from tasks.model.loading import load
from tasks.progress import run_logger
from tasks.projection.bases import layer_projection
from tasks.projection.config import ProjectionConfig
from tasks.projection.logra import layer_table, projection_matrices

__all__ = ["make_bases"]

ALGORITHM = 1


@task(name="make-bases", task_run_name="make {projection.kind} bases")
def make_bases(store: str, model: ModelConfig, projection: ProjectionConfig) -> StoreRef:
    """The bases of every tracked layer, made once for the same layers and parameters."""
    loaded = load(model)
    run_logger().info(coverage(loaded.model, loaded.layers).sentence())
    shapes = [[layer.name, layer.n_inputs, layer.n_outputs, layer.has_bias] for layer in loaded.layers]
    settings = projection.model_dump(include={"kind"} if projection.kind == "identity" else None)
    name = fingerprint({"bases": ALGORITHM, "projection": settings, "layers": shapes})
    root = StoreFolders(Path(store)).layers
    if LayerStore.exists(root, name):
        run_logger().info("bases %s are there already", name)
        return StoreRef(kind="layers", location=str(root / name), fingerprint=name)
    projections = [
        layer_projection(layer.name, layer.n_inputs, layer.n_outputs, layer.has_bias, projection)
        for layer in loaded.layers
    ]
    matrices = [projection_matrices(entry) for entry in projections]
    attributes = {"kind": "bases", "projection": settings}
    return LayerStore.write(root, name, layer_table(projections), matrices, attributes)
