"""Losses of queries near the trained parameters theta*, to second order.

loss(theta* + Delta) ~ loss + q . Delta + 1/2 sum over f of (f . Delta)^2, with q the query's gradient and f the rows
whose outer products add up to its Gauss-Newton matrix.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

__all__ = ["QueryExpansion"]


@dataclass(frozen=True)
class QueryExpansion:
    """Losses of some queries near theta*, to second order.

    Args:
        losses: (n_queries,) at theta*, nats.
        gradients: (n_queries, D) q.
        factors: (n_queries, n_labels, D) f; None for the linear expansion.
    """

    losses: np.ndarray
    gradients: np.ndarray
    factors: np.ndarray | None

    def after(self, steps: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m q"]:
        """Expanded losses after some steps, nats."""
        return self.losses_along(self.along(steps))

    def along(self, steps: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m r"]:
        """q . step of every query, then f . step of every query and label: adds up over parts of the columns."""
        rows = self.gradients
        if self.factors is not None:
            rows = np.concatenate([rows, self.factors.reshape(-1, rows.shape[1])])
        return steps @ rows.T

    def losses_along(self, along: Float[np.ndarray, "m r"]) -> Float[np.ndarray, "m q"]:
        """Expanded losses, nats, from what `along` tells of all columns."""
        n_queries = len(self.losses)
        losses: np.ndarray = self.losses + along[:, :n_queries]
        if self.factors is not None:
            curved = along[:, n_queries:].reshape(len(along), n_queries, -1)
            losses = losses + 0.5 * (curved**2).sum(axis=2)
        return losses

    def of_columns(self, columns: slice) -> "QueryExpansion":
        """A part of it: of some columns of the steps."""
        factors = None if self.factors is None else self.factors[..., columns]
        return QueryExpansion(self.losses, self.gradients[:, columns], factors)
