"""LoGra with every projection and curvature; unprojected, with EK-FAC, it is influence as Grosse et al. compute it.

Sources: Choe et al. 2024 (arXiv 2405.13954); EK-FAC influence, Grosse et al. 2023 (arXiv 2308.03296), section 2.2;
l-RelatIF and theta-RelatIF, Barshan et al. 2020 (arXiv 2003.11630), equations 5 and 6.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from dataworth.tasks.attribution.attributor import Scorer, SingleModelAttributor
from dataworth.tasks.attribution.rows import all_rows, example_rows
from dataworth.tasks.corpus.examples import Examples
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.curvature.fitting import fit, fit_covariances_in_memory
from dataworth.tasks.curvature.kronecker import Covariances
from dataworth.tasks.curvature.precondition import Curvature, Inverses, applied, damped_layers
from dataworth.tasks.model.plain import Model
from dataworth.tasks.projection.bases import covariance_space, projections_of
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.logra import LayerProjection, layer_table

__all__ = ["LoGra", "ScoreKind", "scores_by_damping"]

ScoreKind = Literal["dot", "relative", "theta_relative", "cosine"]


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
        projections, columns, curvatures = fitted(model, examples, self.projection, self.curvature)
        inverses = _inverses(projections, columns, curvatures, self.curvature.damping)

        def scores(queries: Examples) -> Float[np.ndarray, "q n"]:
            asked = all_rows(model, projections, queries)[0].double().cpu().numpy()
            ready = applied(asked, inverses)
            if self.kind == "cosine":
                ready /= _positive(np.sqrt(np.einsum("qc,qc->q", ready, asked)))[:, None]
            influences = np.empty((len(ready), examples.n_examples))
            for numbers, rows, _ in example_rows(model, projections, examples):
                taught = rows.double().cpu().numpy()
                influences[:, numbers] = ready @ taught.T / self._lengths(taught, inverses)
            return influences

        return scores

    def _lengths(self, rows: np.ndarray, inverses: Inverses) -> np.ndarray:
        """(b,) what the scores of some examples are divided by."""
        if self.kind == "dot":
            return np.ones(len(rows))
        solved = applied(rows, inverses)
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
    scores = np.zeros((len(dampings), queries.n_examples, examples.n_examples))
    for model in models:
        projections, columns, curvatures = fitted(model, examples, projection, curvature)
        asked = all_rows(model, projections, queries)[0].double().cpu().numpy()
        inverses = [_inverses(projections, columns, curvatures, damping) for damping in dampings]
        ready = np.stack([applied(asked, each) for each in inverses])
        for numbers, rows, _ in example_rows(model, projections, examples):
            scores[:, :, numbers] += ready @ rows.double().cpu().numpy().T / len(models)
    return scores


def fitted(
    model: Model, examples: Examples, projection: ProjectionConfig, curvature: CurvatureConfig
) -> tuple[list[LayerProjection], list[slice], Sequence[Curvature] | None]:
    """Projections, columns and curvature of every layer, from passes over the examples.

    Args:
        model: the checkpoint.
        examples: those that it was trained on.
        projection: pca bases are made of the covariances of these examples.
        curvature: fitted on all of them.
    """
    whole = None
    if projection.kind == "pca" or (projection.kind == "identity" and curvature.kind in ("kfac", "ekfac")):
        whole = fit_covariances_in_memory(model, examples, covariance_space(model.layers, projection), curvature)
    projections = _projections(model, projection, whole)
    columns = [layer.columns for layer in layer_table(projections)]
    if curvature.kind == "none":
        return projections, columns, None
    return projections, columns, fit(model, examples, projections, curvature, whole)


def _inverses(
    projections: Sequence[LayerProjection],
    columns: Sequence[slice],
    curvatures: Sequence[Curvature] | None,
    damping: DampingConfig,
) -> Inverses:
    if curvatures is None:
        return [(where, None) for where in columns]
    names = [projection.name for projection in projections]
    inverses = damped_layers(dict(zip(names, curvatures, strict=True)), damping)
    return [(where, inverses[name]) for where, name in zip(columns, names, strict=True)]


def _projections(
    model: Model, projection: ProjectionConfig, whole: Sequence[Covariances] | None
) -> list[LayerProjection]:
    names = [layer.name for layer in model.layers]
    covariances = None
    if projection.kind == "pca" and whole is not None:
        pairs = [(entry.inputs, entry.outputs) for entry in whole]
        covariances = dict(zip(names, pairs, strict=True))
    precise = projections_of(model.layers, projection, covariances)
    dtype = next(model.model.parameters()).dtype
    return [entry.to(torch.device("cpu"), dtype) for entry in precise]


def _positive(lengths: np.ndarray) -> np.ndarray:
    """Where a gradient is zero its score is, too, whatever it is divided by."""
    return np.where(lengths > 0, lengths, 1.0)
