"""Influence in the whole space of the tracked layers, blocks between layers included, by iterative solves.

g(q)^T (H + lambda I)^-1 g(z), H the mean over examples of the Gauss-Newton matrix or the Hessian.
Sources: Koh & Liang 2017 (arXiv 1703.04730), equation 2 and section 3; LiSSA, Agarwal et al. 2017 (arXiv 1602.03943).
"""

from abc import abstractmethod

import numpy as np
from jaxtyping import Float

from dataworth.tasks.attribution.attributor import Scorer, SingleModelAttributor
from dataworth.tasks.attribution.products import SECOND_ORDER_TOKENS, CurvatureKind, CurvatureProducts
from dataworth.tasks.attribution.rows import all_rows, row_products, whole_space
from dataworth.tasks.attribution.solvers import (
    NotConvergedError,
    conjugate_gradients,
    largest_eigenvalue,
    lissa,
    relative_residuals,
)
from dataworth.tasks.corpus.examples import Examples
from dataworth.tasks.model.plain import Model

__all__ = ["CGInfluence", "IterativeInfluence", "LiSSAInfluence"]

# Power iteration ends below the largest eigenvalue.
SCALE_MARGIN = 1.1


class IterativeInfluence(SingleModelAttributor):
    """Influence whose solves know the curvature by products only.

    All queries are solved side by side, so that a pass over the examples serves all: some five vectors of all tracked
    parameters are held for each query, in float64.

    Args:
        damping: lambda > 0, in the units of H, a mean over examples; of a loss with N examples and the penalty
            N lambda |theta|^2 / 2 it is that lambda.
        curvature: what H is the mean of.
        batch_tokens: most tokens of a pass.
    """

    def __init__(
        self,
        damping: float,
        curvature: CurvatureKind = "gauss_newton",
        batch_tokens: int = SECOND_ORDER_TOKENS,
    ) -> None:
        super().__init__()
        if not damping > 0:
            raise ValueError(f"expected a damping above 0, got {damping}")
        self.damping, self.curvature, self.batch_tokens = damping, curvature, batch_tokens

    @abstractmethod
    def solved(self, products: CurvatureProducts, right: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
        """(H + lambda I)^-1 b of each row b.

        Raises:
            NotConvergedError: it was not found.
        """

    def scorer(self, model: Model, examples: Examples) -> Scorer:
        """Nothing is computed before there are queries."""
        products = CurvatureProducts(model, examples, self.curvature, self.batch_tokens)

        def scores(queries: Examples) -> Float[np.ndarray, "q n"]:
            projections = whole_space(model)
            asked = all_rows(model, projections, queries)[0].double().cpu().numpy()
            return row_products(self.solved(products, asked), model, projections, examples)

        return scores


class CGInfluence(IterativeInfluence):
    """Influence by conjugate gradients.

    Args:
        damping, curvature, batch_tokens: see IterativeInfluence.
        tolerance: of each query's relative residual.
        most_iterations: passes over the examples.
    """

    def __init__(
        self,
        damping: float,
        curvature: CurvatureKind = "gauss_newton",
        tolerance: float = 1e-5,
        most_iterations: int = 200,
        batch_tokens: int = SECOND_ORDER_TOKENS,
    ) -> None:
        super().__init__(damping, curvature, batch_tokens)
        self.tolerance, self.most_iterations = tolerance, most_iterations

    def solved(self, products: CurvatureProducts, right: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
        def damped(vectors: np.ndarray) -> np.ndarray:
            return products(vectors) + self.damping * vectors

        return conjugate_gradients(damped, right, self.tolerance, self.most_iterations)


class LiSSAInfluence(IterativeInfluence):
    """Influence by a truncated series of products, each with H or with the mean over a few drawn examples.

    Args:
        damping, curvature, batch_tokens: see IterativeInfluence.
        depth: steps of the series.
        samples: examples drawn, with repetition, for each step; None: all of them, and nothing is random.
        repeats: series whose mean is taken, where steps are drawn.
        scale: by which curvature is divided; None: 1.1 times the largest eigenvalue of H + lambda I, estimated. A
            sample's own largest eigenvalue may be well above it.
        tolerance: largest relative residual a query may be left with; infinite: whatever the series gives.
        seed: of the power iteration and of the samples.
    """

    def __init__(
        self,
        damping: float,
        curvature: CurvatureKind = "gauss_newton",
        depth: int = 1000,
        samples: int | None = None,
        repeats: int = 1,
        scale: float | None = None,
        tolerance: float = 0.01,
        seed: int = 0,
        batch_tokens: int = SECOND_ORDER_TOKENS,
    ) -> None:
        super().__init__(damping, curvature, batch_tokens)
        if samples is None and repeats != 1:
            raise ValueError(f"without samples all {repeats} repeats are the same: take one")
        self.depth, self.samples, self.repeats = depth, samples, repeats
        self.scale, self.tolerance, self.seed = scale, tolerance, seed

    def solved(self, products: CurvatureProducts, right: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
        def damped(vectors: np.ndarray, numbers: np.ndarray | None = None) -> np.ndarray:
            return products(vectors, numbers) + self.damping * vectors

        scale = self.scale
        if scale is None:
            scale = SCALE_MARGIN * largest_eigenvalue(damped, products.n_columns, self.seed)
        n_examples = products.examples.n_examples
        solution = np.zeros_like(right)
        for repeat in range(self.repeats):
            generator = np.random.default_rng([self.seed, repeat])
            drawn = None if self.samples is None else generator.integers(0, n_examples, (self.depth, self.samples))

            def step(number: int, vectors: np.ndarray, drawn: np.ndarray | None = drawn) -> np.ndarray:
                return damped(vectors, None if drawn is None else drawn[number])

            solution += lissa(step, right, scale, self.depth) / self.repeats
        worst = float(relative_residuals(damped, solution, right).max(initial=0.0))
        if not worst <= self.tolerance:
            raise NotConvergedError(
                f"the series left a relative residual of {worst:.2g}, above {self.tolerance:.2g}: take a larger depth "
                f"than {self.depth} (about {scale / self.damping:.0f} steps shrink it e-fold), more samples or damping"
            )
        return solution
