"""DataInf: influence whose inverse is the mean of inverses, each in closed form.

Source: Kwon et al. 2024 (arXiv 2310.00902), equation 5: the inverse of a layer's mean of g g^T + lambda I is replaced
by the mean of (g g^T + lambda I)^-1 = (I - g g^T / (lambda + |g|^2)) / lambda (Sherman & Morrison). The damping,
a tenth of the mean of |g|^2 / d, is that of its experiments, after Grosse et al. 2023 (arXiv 2308.03296).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dataworth.tasks.attribution.attributor import Scorer, SingleModelAttributor
from dataworth.tasks.attribution.rows import all_rows, example_rows, fixed_projections, row_products
from dataworth.tasks.corpus.examples import Examples
from dataworth.tasks.model.plain import Model
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.logra import LayerProjection, layer_table

__all__ = ["DataInf"]


class DataInf(SingleModelAttributor):
    """sum over layers of g_l(q)^T (mean over examples of (g_l g_l^T + lambda_l I)^-1) g_l(z), labels the data's own.

    The rows of the examples are streamed: once to fit, twice for every call of `score`.

    Args:
        ratio: lambda_l is this times the mean over examples of |g_l|^2 / d_l, d_l the layer's columns.
        projection: of both sides of every layer; None: none.
    """

    def __init__(self, ratio: float = 0.1, projection: ProjectionConfig | None = None) -> None:
        super().__init__()
        if not ratio > 0:
            raise ValueError(f"expected a ratio above 0, got {ratio}")
        self.ratio = ratio
        self.projection = projection or ProjectionConfig(kind="identity")

    def scorer(self, model: Model, examples: Examples) -> Scorer:
        """Fit the damping of every layer.

        Raises:
            ValueError: all gradients of a layer are zero.
        """
        projections = fixed_projections(model, self.projection)
        columns = [layer.columns for layer in layer_table(projections)]
        dampings = self._dampings(model, projections, columns, examples)

        def scores(queries: Examples) -> Float[np.ndarray, "q n"]:
            asked = all_rows(model, projections, queries)[0].double().cpu().numpy()
            removed = np.zeros_like(asked)
            for _, rows, _ in example_rows(model, projections, examples):
                taught = rows.double().cpu().numpy()
                for layer, damping in zip(columns, dampings, strict=True):
                    removed[:, layer] += sherman_morrison(asked[:, layer], taught[:, layer], damping)
            solved = asked - removed / examples.n_examples
            for layer, damping in zip(columns, dampings, strict=True):
                solved[:, layer] /= damping
            return row_products(solved, model, projections, examples)

        return scores

    def _dampings(
        self, model: Model, projections: Sequence[LayerProjection], columns: Sequence[slice], examples: Examples
    ) -> Float[np.ndarray, " l"]:
        squares = np.zeros(len(columns))
        for _, rows, _ in example_rows(model, projections, examples):
            lengths = (rows.double() ** 2).sum(dim=0).cpu().numpy()
            squares += [lengths[layer].sum() / (layer.stop - layer.start) for layer in columns]
        for projection, square in zip(projections, squares, strict=True):
            if not square > 0:
                raise ValueError(f"all gradients of layer {projection.name} are zero, so that it has no damping")
        return self.ratio * squares / examples.n_examples


def sherman_morrison(
    vectors: Float[np.ndarray, "q d"], rows: Float[np.ndarray, "b d"], damping: float
) -> Float[np.ndarray, "q d"]:
    """sum over rows g of g (g . v) / (lambda + |g|^2): what lambda (g g^T + lambda I)^-1 v lacks of v, added up."""
    removed: np.ndarray = (vectors @ rows.T / (damping + (rows**2).sum(axis=1))) @ rows
    return removed
