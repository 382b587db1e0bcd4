"""From the sums over passes to the matrices that a curvature is kept as."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataworth.tasks.capture.factors import FactorCapture
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.curvature.lowrank import gaussian_matrix, low_rank_plus_diagonal
from dataworth.tasks.curvature.precondition import eigendecomposition
from dataworth.tasks.projection.logra import LayerProjection, layer_table

__all__ = [
    "Covariance",
    "Matrices",
    "Sums",
    "both_eigenvectors",
    "covariance_matrices",
    "eigenvectors",
    "fitted_matrices",
    "projected_covariances",
]

Matrices = list[dict[str, np.ndarray]]
# From a layer's name and "input_covariance" or "output_covariance" to the whole matrix.
Covariance = Callable[[str, str], np.ndarray]
# Passes over the examples and what they add up to: of "fisher", "covariances", or, in the basis of both eigenvectors of
# every layer, "eigenvalues".
Sums = Callable[[str, "list[tuple[np.ndarray, np.ndarray]] | None"], Mapping[str, Tensor]]


def fitted_matrices(
    projections: Sequence[LayerProjection],
    curvature: CurvatureConfig,
    n_examples: int,
    sums: Sums,
    whole: Covariance | None = None,
) -> Matrices:
    """The curvature of every layer in its projected space, wherever its examples are summed.

    Args:
        projections: one a layer.
        curvature: kind, low rank and seed.
        n_examples: that are summed.
        sums: makes the passes.
        whole: covariances of the whole layers, where they are there: KFAC and EK-FAC then need no pass for theirs.
    """
    if curvature.kind == "fisher":
        means = {name: total.cpu().numpy() / n_examples for name, total in sums("fisher", None).items()}
        return [_fisher(number, layer, means, curvature) for number, layer in enumerate(layer_table(projections))]
    if whole is None:
        factors = covariance_matrices(projections, sums("covariances", None))
    else:
        factors = projected_covariances(projections, whole)
    matrices = [eigenvectors(entry) for entry in factors]
    if curvature.kind == "ekfac":
        totals = sums("eigenvalues", [both_eigenvectors(entry) for entry in matrices])
        for number, entry in enumerate(matrices):
            entry["eigenvalues"] = totals[str(number)].cpu().numpy() / n_examples
    return matrices


def _fisher(
    number: int, layer: Mapping[str, Any], means: Mapping[str, np.ndarray], curvature: CurvatureConfig
) -> dict[str, np.ndarray]:
    """The Fisher of one layer: dense, or of a layer that was sketched low-rank plus diagonal.

    Args:
        number: of the layer in the layer table.
        layer: its entry there.
        means: over examples, as `FisherSum` or `LowRankSum` name their sums.
        curvature: low rank and seed of the sketch.
    """
    if str(number) in means:
        return {"fisher": means[str(number)]}
    matrix = gaussian_matrix(int(layer["n_columns"]), curvature.low_rank, curvature.seed, number)
    low_rank, residual = low_rank_plus_diagonal(means[f"sketch {number}"], matrix, means[f"diagonal {number}"])
    return {"low_rank": low_rank, "residual": residual}


def covariance_matrices(projections: Sequence[LayerProjection], sums: Mapping[str, Tensor]) -> Matrices:
    """KFAC's two covariances of each layer, means over tokens."""
    return [
        {"input_covariance": inputs.cpu().numpy(), "output_covariance": outputs.cpu().numpy()}
        for inputs, outputs in FactorCapture([()] * len(projections), projections).covariances(dict(sums))
    ]


def projected_covariances(projections: Sequence[LayerProjection], whole: Covariance) -> Matrices:
    """A C A^T of the whole covariances C of each side with basis A."""
    matrices = []
    for projection in projections:
        exact = projection.to(torch.device("cpu"), torch.float64)
        found = {}
        for name, side in (("input_covariance", exact.input_side), ("output_covariance", exact.output_side)):
            covariance = torch.from_numpy(whole(projection.name, name))
            half = side.projected(covariance, trailing_one=False)
            found[name] = side.projected(half.T.contiguous(), trailing_one=False).numpy()
        matrices.append(found)
    return matrices


def eigenvectors(covariances: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Eigenvectors of both factors, and KFAC's eigenvalues: the products of theirs."""
    inputs, input_eigenvectors = eigendecomposition(covariances["input_covariance"])
    outputs, output_eigenvectors = eigendecomposition(covariances["output_covariance"])
    return {
        "input_eigenvectors": input_eigenvectors,
        "output_eigenvectors": output_eigenvectors,
        "eigenvalues": np.outer(outputs, inputs),
    }


def both_eigenvectors(matrices: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of the input's and of the output's factor."""
    return matrices["input_eigenvectors"], matrices["output_eigenvectors"]
