"""Prefect task that makes the bases of a model's tracked layers."""

from pathlib import Path

import numpy as np
import torch
from prefect import task

from storage.layers import LayerStore
from storage.locations import StoreFolders
from storage.ref import StoreRef, fingerprint
from tasks.model.config import ModelConfig
from tasks.model.layers import coverage
from tasks.model.loading import load
from tasks.progress import run_logger
from tasks.projection.bases import Side, random_basis
from tasks.projection.config import ProjectionConfig
from tasks.projection.logra import LayerProjection, layer_table

__all__ = ["make_bases"]

ALGORITHM = 1


@task(name="make-bases", task_run_name="make {projection.kind} bases")
def make_bases(store: str, model: ModelConfig, projection: ProjectionConfig) -> StoreRef:
    """The bases of every tracked layer, made once for the same layers and parameters."""
    loaded = load(model)
    run_logger().info(coverage(loaded.model, loaded.layers).sentence())
    shapes = [[layer.name, layer.n_inputs, layer.n_outputs, layer.has_bias] for layer in loaded.layers]
    settings = projection.model_dump() if projection.kind == "random" else projection.model_dump(include={"kind"})
    name = fingerprint({"bases": ALGORITHM, "projection": settings, "layers": shapes})
    root = StoreFolders(Path(store)).layers
    if LayerStore.exists(root, name):
        run_logger().info("bases %s are there already", name)
        return StoreRef(kind="layers", location=str(root / name), fingerprint=name)
    matrices: list[dict[str, np.ndarray]] = []
    projections = []
    for layer in loaded.layers:
        found: dict[str, np.ndarray] = {}
        if projection.kind == "random":
            sides: tuple[tuple[Side, int], ...] = (("input", layer.n_inputs), ("output", layer.n_outputs))
            for side, size in sides:
                basis = random_basis(layer.name, side, size, projection.rank, projection.seed)
                if basis is not None:
                    found[f"{side}_basis"] = basis
        matrices.append(found)
        tensors = {key: torch.from_numpy(value) for key, value in found.items()}
        projections.append(LayerProjection(layer.name, layer.n_inputs, layer.n_outputs, layer.has_bias, **tensors))
    attributes = {"kind": "bases", "projection": settings}
    return LayerStore.write(root, name, layer_table(projections), matrices, attributes)
