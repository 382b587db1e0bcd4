"""Influence in the space of the leading eigenvectors of the curvature, found by Arnoldi's iteration.

Source: Schioppa et al. 2022 (arXiv 2112.03052), algorithm 1: H restricted to a Krylov space of a random vector, of
whose eigenpairs those of the largest magnitude are kept; gradients are projected on them, and divided by the
eigenvalues. The curvature is symmetric, so that the iteration is Lanczos'; every new vector is made orthogonal to all
before it.
"""

import numpy as np
from jaxtyping import Float

from dataworth.tasks.attribution.attributor import Scorer, SingleModelAttributor
from dataworth.tasks.attribution.products import SECOND_ORDER_TOKENS, CurvatureKind, CurvatureProducts
from dataworth.tasks.attribution.rows import row_products, whole_space
from dataworth.tasks.attribution.solvers import Product
from dataworth.tasks.corpus.examples import Examples
from dataworth.tasks.model.plain import Model

__all__ = ["ArnoldiInfluence", "leading_eigenpairs"]

# What is left of a vector of length 1 is rounding, below this.
ROUNDING = 1e-10


def leading_eigenpairs(
    product: Product, size: int, iterations: int, rank: int, seed: int
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, "r d"]]:
    """Eigenvalues of the largest magnitude, largest first, and their eigenvectors, one a row.

    Args:
        product: A v; A symmetric.
        size: d.
        iterations: products; the more beyond the rank, the nearer are all pairs.
        rank: r.
        seed: of the first vector.

    Raises:
        ValueError: more iterations than dimensions.
    """
    if iterations > size:
        raise ValueError(f"{iterations} iterations are more than the {size} dimensions there are")
    generator = np.random.default_rng(seed)
    basis, images = np.empty((iterations, size)), np.empty((iterations, size))
    following = generator.standard_normal(size)
    for number in range(iterations):
        basis[number] = _direction(following, basis[:number], generator)
        following = images[number] = product(basis[number : number + 1])[0]
    restricted = basis @ images.T
    values, vectors = np.linalg.eigh((restricted + restricted.T) / 2)
    leading = np.argsort(-np.abs(values), kind="stable")[:rank]
    return values[leading], vectors[:, leading].T @ basis


def _direction(
    vector: Float[np.ndarray, " d"], basis: Float[np.ndarray, "k d"], generator: np.random.Generator
) -> Float[np.ndarray, " d"]:
    """The vector's direction orthogonal to orthonormal rows; a drawn one where it lies in their span.

    In the latter case the Krylov space is closed under A, and goes on from elsewhere.
    """
    while True:
        left = _orthogonal(vector, basis)
        length = np.linalg.norm(left)
        if length > ROUNDING * np.linalg.norm(vector):
            return _orthogonal(left / length, basis)
        vector = generator.standard_normal(len(vector))


def _orthogonal(vector: Float[np.ndarray, " d"], basis: Float[np.ndarray, "k d"]) -> Float[np.ndarray, " d"]:
    """The vector less its part in the span of orthonormal rows, twice: once leaves rounding behind."""
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    return vector


class ArnoldiInfluence(SingleModelAttributor):
    """sum over leading eigenpairs (w, u) of H of (u . g(q)) (u . g(z)) / (w + lambda).

    Args:
        iterations: passes over the examples; as many vectors of all tracked parameters are held in float64.
        rank: eigenpairs kept of them.
        damping: lambda, in the units of H, a mean over examples; the paper has none.
        curvature: what H is the mean of; the Hessian's negative eigenvalues count as they are.
        seed: of the first vector.
        batch_tokens: most tokens of a pass.
    """

    def __init__(
        self,
        iterations: int,
        rank: int,
        damping: float = 0.0,
        curvature: CurvatureKind = "gauss_newton",
        seed: int = 0,
        batch_tokens: int = SECOND_ORDER_TOKENS,
    ) -> None:
        super().__init__()
        if not 1 <= rank <= iterations:
            raise ValueError(f"{rank} eigenpairs cannot be found by {iterations} iterations")
        self.iterations, self.rank, self.damping = iterations, rank, damping
        self.curvature, self.seed, self.batch_tokens = curvature, seed, batch_tokens

    def scorer(self, model: Model, examples: Examples) -> Scorer:
        """Find the eigenpairs; rank floats an example are kept.

        Raises:
            ValueError: more iterations than parameters, or a leading eigenvalue that is zero, damping included.
        """
        products = CurvatureProducts(model, examples, self.curvature, self.batch_tokens)
        values, vectors = leading_eigenpairs(products, products.n_columns, self.iterations, self.rank, self.seed)
        divisors = values + self.damping
        least = int(np.abs(divisors).argmin())
        if np.abs(divisors[least]) <= ROUNDING * np.abs(values[0]):
            raise ValueError(
                f"leading eigenvalue {least + 1} of {self.rank}, {values[least]:.2g}, is zero with a damping of "
                f"{self.damping:.2g}: take a smaller rank or more damping"
            )
        projections = whole_space(model)
        taught = row_products(vectors, model, projections, examples)

        def scores(queries: Examples) -> Float[np.ndarray, "q n"]:
            asked = row_products(vectors, model, projections, queries)
            return (asked.T / divisors) @ taught

        return scores
