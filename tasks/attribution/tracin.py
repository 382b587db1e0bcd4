"""TracIn: what the steps of training on an example did to a query, from checkpoints along the way.

Source: Pruthi et al. 2020 (arXiv 2002.08484), equation 1 in its practical form, TracInCP: sum over
checkpoints i of eta_i grad l(theta_i, z) . grad l(theta_i, z').
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
from jaxtyping import Float

from dataworth.tasks.attribution.attributor import Attributor
from dataworth.tasks.attribution.rows import all_rows, fixed_projections, row_products
from dataworth.tasks.corpus.examples import Examples
from dataworth.tasks.model.plain import Model
from dataworth.tasks.projection.config import ProjectionConfig

__all__ = ["TracIn"]


class TracIn(Attributor):
    """sum over checkpoints of rate_i g_i(q) . g_i(z), of gradients of summed losses; the models are the checkpoints.

    Args:
        rates: learning rate at each checkpoint, times what an example's loss counts in a step (1 / batch size of a
            mean-reduced loss) if scores are to be in nats; None: 1 at each.
        projection: of both sides of every layer, the same at every checkpoint; None: none.

    Raises:
        ValueError: pca bases, which would differ between checkpoints.
    """

    def __init__(self, rates: Sequence[float] | None = None, projection: ProjectionConfig | None = None) -> None:
        self.rates = None if rates is None else tuple(rates)
        self.projection = projection or ProjectionConfig(kind="identity")
        if self.projection.kind == "pca":
            raise ValueError("pca bases differ between checkpoints: take random or identity")
        self._models: Sequence[Model] = ()
        self._examples: Examples | None = None

    def fit(self, models: Sequence[Model], examples: Examples) -> Self:
        """Remember checkpoints and examples; there is nothing else to learn.

        Raises:
            ValueError: not as many rates as checkpoints.
        """
        if self.rates is not None and len(self.rates) != len(models):
            raise ValueError(f"{len(models)} checkpoints need as many rates, got {len(self.rates)}")
        self._models, self._examples = tuple(models), examples
        return self

    def score(self, queries: Examples) -> Float[np.ndarray, "q n"]:
        """One pass over the queries and one over the examples for each checkpoint."""
        if self._examples is None:
            raise ValueError("fit the method before it scores")
        total = np.zeros((queries.n_examples, self._examples.n_examples))
        for rate, model in zip(self.rates or (1.0,) * len(self._models), self._models, strict=True):
            projections = fixed_projections(model, self.projection)
            asked = all_rows(model, projections, queries)[0].double().cpu().numpy()
            total += rate * row_products(asked, model, projections, self._examples)
        return total
