"""The path game (Aumann & Shapley 1974): a source's marginal contribution while the whole corpus grows from 0 to 1.

phi_s = integral over t in [0, 1] of (q + M D_t)^T (t H + lambda I)^-1 (g_s + H_s D_t) dt,
D_t = (t H + lambda I)^-1 (G - t G'),

with G the sum of the gradients of all sources, endpoint-matched, G' and H the sums over the sources that grow, and M
the query's Gauss-Newton matrix. Where all grow, G' = G. An absent source does not: its curvature is never there and its
gradient is removed at every t, up to t = 1 where D_1 = (H + lambda I)^-1 (its gradient), so that the values of the
others add up to v(all but it) - v(none). Values of parts add up to that of the whole, whatever the parts: splitting a
source changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from dataworth.tasks.coalitions.games.expansion import QueryExpansion
from dataworth.tasks.coalitions.games.newton_steps import LayerSums

__all__ = ["NODES", "PathPoints", "path_points", "path_values"]

NODES = 16


def _nodes(ratio: float, n_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes t and weights of the integral over [0, 1], Gauss-Legendre in u with t = ((1 + r)^u - 1) / r.

    (t H + lambda I)^-1 changes on the scale lambda / h for every eigenvalue h: evenly in the logarithm meets all.

    Args:
        ratio: r, of the largest eigenvalue and lambda.
        n_nodes: of them.
    """
    points, weights = np.polynomial.legendre.leggauss(n_nodes)
    u = (points + 1) / 2
    growth = np.log1p(max(ratio, 1e-9))
    scale = np.expm1(growth)
    return np.expm1(growth * u) / scale, weights / 2 * growth * np.exp(growth * u) / scale


def path_values(
    layers: Sequence[LayerSums],
    damping: float,
    expansion: QueryExpansion,
    n_nodes: int = NODES,
    portions: Float[np.ndarray, "p s"] | None = None,
) -> Float[np.ndarray, "q p"]:
    """Values of every player for every query, nats.

    Args:
        layers: sums by source, endpoint-matched where theta_0 is known.
        damping: lambda > 0.
        expansion: of the queries, layers side by side as in the steps.
        n_nodes: of the integral.
        portions: which part of each source a player holds; None: each player is a source.
    """
    n_sources = layers[0].gradients.shape[0]
    held = np.ones(n_sources) if portions is None else portions.sum(axis=0)
    spectra = [np.linalg.eigh(np.tensordot(held, layer.curvatures, axes=1)) for layer in layers]
    largest = max((float(eigenvalues.max(initial=0.0)) for eigenvalues, _ in spectra), default=0.0)
    values = np.zeros((len(expansion.losses), n_sources))

    def solved(number: int, right: np.ndarray, t: float) -> np.ndarray:
        """(t H + lambda I)^-1 applied to the rows of one layer."""
        eigenvalues, vectors = spectra[number]
        return ((right @ vectors) / (t * np.maximum(eigenvalues, 0.0) + damping)) @ vectors.T

    for t, weight in zip(*_nodes(largest / damping, n_nodes), strict=True):
        position = [solved(n, (1 - t * held) @ layer.gradients, t) for n, layer in enumerate(layers)]
        moves = [
            solved(n, layer.gradients + layer.curvatures @ at, t)
            for n, (layer, at) in enumerate(zip(layers, position, strict=True))
        ]
        slopes = expansion.gradients
        if expansion.factors is not None:
            along = expansion.factors @ np.concatenate(position)
            slopes = slopes + np.einsum("ql,qld->qd", along, expansion.factors)
        values += weight * slopes @ np.concatenate(moves, axis=1).T
    return values if portions is None else values @ portions.T


@dataclass(frozen=True)
class PathPoints:
    """The path of all queries together, by which any part of a source is valued.

    A part with gradient g and, in each layer, curvature f f^T is worth sum over t of u_t . g + sum over the layers of
    (u_t . f)(f . D_t): the integrand of `path_values`, weighted.

    Args:
        slopes: (T, D) u = weight (t H + lambda I)^-1 (q + M D_t).
        positions: (T, D) D_t.
        columns: of each layer.
    """

    slopes: np.ndarray
    positions: np.ndarray
    columns: list[slice]

    def of_gradients(self, gradients: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """What gradients are worth, nats."""
        worth: np.ndarray = gradients @ self.slopes.sum(axis=0)
        return worth

    def of_factors(self, factors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """What curvatures f f^T are worth, nats; there is none between layers."""
        worth = np.zeros(len(factors))
        for layer in self.columns:
            along, across = factors[:, layer] @ self.slopes[:, layer].T, factors[:, layer] @ self.positions[:, layer].T
            worth += (along * across).sum(axis=1)
        return worth


def path_points(
    layers: Sequence[LayerSums], damping: float, expansion: QueryExpansion, n_nodes: int = NODES
) -> PathPoints:
    """Arguments as in `path_values`."""
    spectra = [np.linalg.eigh(layer.curvatures.sum(axis=0)) for layer in layers]
    largest = max((float(eigenvalues.max(initial=0.0)) for eigenvalues, _ in spectra), default=0.0)
    sizes = np.cumsum([layer.gradients.shape[1] for layer in layers])[:-1]
    slopes, positions = [], []

    def solved(rows: np.ndarray, t: float) -> np.ndarray:
        """(t H + lambda I)^-1 applied to a row of all layers."""
        parts = [
            vectors @ ((part @ vectors) / (t * np.maximum(eigenvalues, 0.0) + damping))
            for part, (eigenvalues, vectors) in zip(np.split(rows, sizes), spectra, strict=True)
        ]
        return np.concatenate(parts)

    for t, weight in zip(*_nodes(largest / damping, n_nodes), strict=True):
        position = solved((1 - t) * np.concatenate([layer.gradients.sum(axis=0) for layer in layers]), t)
        slope = expansion.gradients.sum(axis=0)
        if expansion.factors is not None:
            factors = expansion.factors.reshape(-1, expansion.factors.shape[-1])
            slope = slope + (factors @ position) @ factors
        slopes.append(weight * solved(slope, t))
        positions.append(position)
    ends = [0, *sizes.tolist(), len(slopes[0])]
    columns = [slice(first, last) for first, last in pairwise(ends)]
    return PathPoints(np.stack(slopes), np.stack(positions), columns)
