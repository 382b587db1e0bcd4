"""LoGra with every projection and curvature; unprojected, with EK-FAC, it is influence as Grosse et al. compute it.

Sources: Choe et al. 2024 (arXiv 2405.13954); EK-FAC influence, Grosse et al. 2023 (arXiv 2308.03296), section 2.2;
l-RelatIF and theta-RelatIF, Barshan et al. 2020 (arXiv 2003.11630), equations 5 and 6.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dataworth.tasks.attribution.attributor import Scorer, SingleModelAttributor
from dataworth.tasks.attribution.rows import BATCH_TOKENS, all_rows, example_rows, labelled_rows, whole_space
from dataworth.tasks.capture.factors import FactorCapture
from dataworth.tasks.corpus.batches import batches_by_length
from dataworth.tasks.corpus.examples import Examples
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.curvature.fitting import curvature_passes
from dataworth.tasks.curvature.lowrank import LowRankSum
from dataworth.tasks.curvature.matrices import (
    Matrices,
    both_eigenvectors,
    covariance_matrices,
    eigenvectors,
    fisher_matrices,
    projected_covariances,
)
from dataworth.tasks.curvature.precondition import Preconditioner, damped_inverse
from dataworth.tasks.curvature.sums import EigenvalueSum, FisherSum, RowSum
from dataworth.tasks.model.plain import Model
from dataworth.tasks.projection.bases import projections_of
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.logra import LayerProjection, layer_table

__all__ = ["LoGra", "ScoreKind", "scores_by_damping"]

ScoreKind = Literal["dot", "relative", "theta_relative", "cosine"]
# Columns of a layer whose Fisher is kept dense: 512 MB in float64. Beyond, it is low-rank plus diagonal.
MOST_DENSE = 8192

# A layer's columns, and its damped inverse; None where the curvature is the identity.
Inverses = Sequence[tuple[slice, Preconditioner | None]]


class LoGra(SingleModelAttributor):
    """g(q)^T (H + lambda I)^-1 g(z) in the projected space.

    Args:
        projection: of both sides of every layer; `identity` for none.
        curvature: H, its labels and its damping; `none` for plain products of gradients.
        kind: dot: as above; relative: divided by the root of z's self-influence (l-RelatIF); theta_relative: by the
            length of (H + lambda I)^-1 g(z) (theta-RelatIF); cosine: by the roots of both self-influences.
    """

    def __init__(self, projection: ProjectionConfig, curvature: CurvatureConfig, kind: ScoreKind = "dot") -> None:
        super().__init__()
        self.projection, self.curvature, self.kind = projection, curvature, kind

    def scorer(self, model: Model, examples: Examples) -> Scorer:
        """Fit bases and curvature."""
        projections, columns, matrices = fitted(model, examples, self.projection, self.curvature)
        inverses = _inverses(columns, matrices, self.curvature.damping)

        def scores(queries: Examples) -> Float[np.ndarray, "q n"]:
            asked = all_rows(model, projections, queries)[0].double().cpu().numpy()
            ready = _solved(asked, inverses)
            if self.kind == "cosine":
                ready /= _positive(np.sqrt(np.einsum("qc,qc->q", ready, asked)))[:, None]
            found = np.empty((len(ready), examples.n_examples))
            for numbers, rows, _ in example_rows(model, projections, examples):
                taught = rows.double().cpu().numpy()
                found[:, numbers] = ready @ taught.T / self._lengths(taught, inverses)
            return found

        return scores

    def _lengths(self, rows: np.ndarray, inverses: Inverses) -> np.ndarray:
        """(b,) what the scores of some examples are divided by."""
        if self.kind == "dot":
            return np.ones(len(rows))
        solved = _solved(rows, inverses)
        squares = solved**2 if self.kind == "theta_relative" else solved * rows
        return _positive(np.sqrt(squares.sum(axis=1)))


def scores_by_damping(
    models: Sequence[Model],
    examples: Examples,
    queries: Examples,
    projection: ProjectionConfig,
    curvature: CurvatureConfig,
    dampings: Sequence[DampingConfig],
) -> Float[np.ndarray, "d q n"]:
    """Scores of `LoGra` under several dampings, for one fit and one pass over the examples; means over the models.

    Args:
        models, examples, queries: as of a method.
        projection, curvature: as of LoGra; the curvature's own damping does not count.
        dampings: one after another.
    """
    found = np.zeros((len(dampings), queries.n_examples, examples.n_examples))
    for model in models:
        projections, columns, matrices = fitted(model, examples, projection, curvature)
        asked = all_rows(model, projections, queries)[0].double().cpu().numpy()
        ready = np.stack([_solved(asked, _inverses(columns, matrices, damping)) for damping in dampings])
        for numbers, rows, _ in example_rows(model, projections, examples):
            found[:, :, numbers] += ready @ rows.double().cpu().numpy().T / len(models)
    return found


def fitted(
    model: Model, examples: Examples, projection: ProjectionConfig, curvature: CurvatureConfig
) -> tuple[list[LayerProjection], list[slice], Matrices | None]:
    """Projections, columns and curvature of every layer, from passes over the examples.

    Args:
        model: the checkpoint.
        examples: those that it was trained on.
        projection: pca bases are made of the covariances of these examples.
        curvature: fitted on all of them.
    """
    whole = None
    if projection.kind == "pca" or (projection.kind == "identity" and curvature.kind in ("kfac", "ekfac")):
        whole = _covariances(model, whole_space(model), examples, curvature)
    projections = _projections(model, projection, whole)
    table = layer_table(projections)
    columns = [slice(row["first_column"], row["first_column"] + row["n_columns"]) for row in table]
    if curvature.kind == "none":
        return projections, columns, None
    if curvature.kind == "fisher":
        return projections, columns, _fisher(model, projections, examples, curvature)
    return projections, columns, _kronecker(model, projections, examples, curvature, whole)


def _inverses(columns: Sequence[slice], matrices: Matrices | None, damping: DampingConfig) -> Inverses:
    if matrices is None:
        return [(where, None) for where in columns]
    return [(where, damped_inverse(entry, damping)) for where, entry in zip(columns, matrices, strict=True)]


def _projections(model: Model, projection: ProjectionConfig, whole: Matrices | None) -> list[LayerProjection]:
    names = [layer.name for layer in model.layers]
    found = None
    if projection.kind == "pca" and whole is not None:
        pairs = [(entry["input_covariance"], entry["output_covariance"]) for entry in whole]
        found = dict(zip(names, pairs, strict=True))
    precise = projections_of(model.layers, projection, found)
    dtype = next(model.model.parameters()).dtype
    return [entry.to(torch.device("cpu"), dtype) for entry in precise]


def _covariances(
    model: Model, projections: Sequence[LayerProjection], examples: Examples, curvature: CurvatureConfig
) -> Matrices:
    dtype = next(model.model.parameters()).dtype
    moved = [projection.to(model.device, dtype) for projection in projections]
    with FactorCapture([layer.modules for layer in model.layers], moved) as capture:
        for numbers in batches_by_length(examples.lengths, BATCH_TOKENS, model.reading.batching):
            for _ in curvature_passes(model, capture, examples, numbers, curvature):
                pass
        return covariance_matrices(projections, capture.sums)


def _summed(
    model: Model,
    projections: Sequence[LayerProjection],
    examples: Examples,
    curvature: CurvatureConfig,
    sums: Sequence[RowSum],
) -> dict[str, np.ndarray]:
    """Means over the examples."""
    for _, rows in labelled_rows(model, projections, examples, curvature):
        for entry in sums:
            entry.add(rows)
    totals: dict[str, Tensor] = {name: total for entry in sums for name, total in entry.sums.items()}
    return {name: total.cpu().numpy() / examples.n_examples for name, total in totals.items()}


def _fisher(
    model: Model, projections: Sequence[LayerProjection], examples: Examples, curvature: CurvatureConfig
) -> Matrices:
    table = dict(enumerate(layer_table(projections)))
    wide = {number: layer for number, layer in table.items() if layer["n_columns"] > MOST_DENSE}
    narrow = {number: layer for number, layer in table.items() if number not in wide}
    sums: list[RowSum] = [FisherSum(narrow), LowRankSum(wide, curvature.low_rank, curvature.seed)]
    means = _summed(model, projections, examples, curvature, sums)
    return [fisher_matrices(number, layer, means, curvature) for number, layer in table.items()]


def _kronecker(
    model: Model,
    projections: Sequence[LayerProjection],
    examples: Examples,
    curvature: CurvatureConfig,
    whole: Matrices | None,
) -> Matrices:
    if whole is None:
        factors = _covariances(model, projections, examples, curvature)
    else:
        by_name: Mapping[str, dict[str, np.ndarray]] = dict(
            zip((projection.name for projection in projections), whole, strict=True)
        )
        factors = projected_covariances(projections, lambda layer, name: by_name[layer][name])
    matrices = [eigenvectors(entry) for entry in factors]
    if curvature.kind == "ekfac":
        inputs, outputs = zip(*(both_eigenvectors(entry) for entry in matrices), strict=True)
        sums = EigenvalueSum(layer_table(projections), inputs, outputs)
        means = _summed(model, projections, examples, curvature, [sums])
        for number, entry in enumerate(matrices):
            entry["eigenvalues"] = means[str(number)]
    return matrices


def _solved(rows: np.ndarray, inverses: Inverses) -> np.ndarray:
    """(H + lambda I)^-1 of each row, float64."""
    return np.concatenate(
        [rows[:, columns] if inverse is None else inverse.applied(rows[:, columns]) for columns, inverse in inverses],
        axis=1,
    )


def _positive(lengths: np.ndarray) -> np.ndarray:
    """Where a gradient is zero its score is, too, whatever it is divided by."""
    return np.where(lengths > 0, lengths, 1.0)
