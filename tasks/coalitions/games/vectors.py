"""The newton game without queries: what each source is worth in parameters.

A coalition's step Delta_C knows no query. Phi_s, the semivalue of the vector game C -> Delta_C, is found once for all
queries: in the linear expansion v(C) = -loss - q . Delta_C a source is worth -q . Phi_s to a query of gradient q.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dataworth.tasks.coalitions.estimation.designs import antithetic_permutations, prefixes
from dataworth.tasks.coalitions.estimation.estimators import Estimate
from dataworth.tasks.coalitions.estimation.intervals import skewed_interval
from dataworth.tasks.coalitions.estimation.sampling import enumerated
from dataworth.tasks.coalitions.estimation.semivalues import coefficients, size_chances
from dataworth.tasks.coalitions.games.newton_steps import NewtonSteps

__all__ = ["VectorDesign", "VectorValues", "vector_design", "vector_values"]

# Samples that tell the error, each of as many pairs of orders as the budget allows.
MAX_SAMPLES = 16
STEPS_AT_ONCE = 256


@dataclass(frozen=True)
class VectorDesign:
    """Coalitions whose steps, times the coefficients, add up to the values.

    Args:
        samples: masks (m, s) and coefficients (m, s) of each independent sample; a single one where it is exact.
        n_coalitions: different ones.
        exact: no coalition that counts is left out.
    """

    samples: list[tuple[np.ndarray, np.ndarray]]
    n_coalitions: int
    exact: bool


@dataclass(frozen=True)
class VectorValues:
    """Phi, of all documents and with groups of them left out.

    Args:
        samples: (n_samples, n_sources, D), whose mean it is.
        replicates: (G, n_sources, D) with each group of documents left out in turn; G = 0 where none was.
        n_coalitions: whose steps were found.
        exact: the samples are one, without an error.
    """

    samples: np.ndarray
    replicates: np.ndarray
    n_coalitions: int
    exact: bool

    def estimate(self, gradients: Float[np.ndarray, "q d"], confidence: float) -> Estimate:
        """Values for some queries and, in the last row, all of them together; errors are those of sampled orders.

        Args:
            gradients: of the queries, in the coordinates of the steps.
            confidence: of the intervals.
        """
        samples = _values(self.samples, gradients)
        values = samples.mean(axis=0)
        if self.exact:
            return Estimate(values, np.zeros_like(values), values, values, self.n_coalitions, "exact")
        errors = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
        low, high = skewed_interval(samples, confidence)
        return Estimate(values, errors, low, high, self.n_coalitions, "permutation")

    def replicate_values(self, gradients: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "g r s"]:
        """The same values with each group of documents left out."""
        return _values(self.replicates, gradients)


def vector_design(
    n_players: int, weights: Float[np.ndarray, " s"], budget: int, generator: np.random.Generator
) -> VectorDesign:
    """All coalitions where the budget pays for them, else antithetic pairs of orders.

    Args:
        n_players: s.
        weights: of the semivalue (see `size_weights`).
        budget: of coalitions.
        generator: draws the orders.

    Raises:
        ValueError: the budget does not pay for two pairs of orders.
    """
    everything = enumerated(weights, budget)
    if everything is not None:
        return VectorDesign([(everything, coefficients(everything, weights))], len(everything), True)
    pairs = budget // (2 * (n_players - 1))
    if pairs < 2:
        least = 4 * (n_players - 1)
        raise ValueError(f"{n_players} sources need a budget of {least} coalitions at least, got {budget}")
    n_samples = min(pairs, MAX_SAMPLES)
    factors = n_players * size_chances(weights)
    samples = [
        _sample(antithetic_permutations(n_players, pairs // n_samples, generator), factors) for _ in range(n_samples)
    ]
    return VectorDesign(samples, n_samples * (pairs // n_samples) * 2 * (n_players - 1) + 2, False)


def _sample(orders: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The beginnings of some orders, and coefficients that average the marginal contributions along them."""
    each = orders.reshape(-1, orders.shape[-1])
    n_orders, n = each.shape
    shares = np.zeros((n_orders, n + 1, n))
    rows, places = np.arange(n_orders)[:, None], np.arange(n)[None]
    shares[rows, places + 1, each] += factors / n_orders
    shares[rows, places, each] -= factors / n_orders
    return prefixes(orders), shares.reshape(-1, n)


def vector_values(
    steps: NewtonSteps, design: VectorDesign, without_group: Iterator[NewtonSteps] | None = None
) -> VectorValues:
    """Phi of every source.

    Args:
        steps: Delta of coalitions.
        design: which of them.
        without_group: the same with each group of documents left out in turn; None: no such replicates.

    Time: a damped solve by layer for every coalition of the design, and for every group the same.
    """
    samples = np.stack([_phi(steps, *sample) for sample in design.samples])
    replicates = [
        np.mean([_phi(left, *sample) for sample in design.samples], axis=0) for left in without_group or iter(())
    ]
    shape = (0, *samples.shape[1:])
    return VectorValues(
        samples, np.stack(replicates) if replicates else np.zeros(shape), design.n_coalitions, design.exact
    )


def _phi(steps: NewtonSteps, masks: np.ndarray, shares: np.ndarray) -> np.ndarray:
    total = np.zeros((shares.shape[1], steps.n_columns))
    for first in range(0, len(masks), STEPS_AT_ONCE):
        part = slice(first, first + STEPS_AT_ONCE)
        total += shares[part].T @ steps(masks[part])
    return total


def _values(vectors: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """(b, q + 1, s) of (b, s, D)."""
    by_query = -np.einsum("bsd,qd->bqs", vectors, gradients, optimize=True)
    return np.concatenate([by_query, by_query.sum(axis=1, keepdims=True)], axis=1)
