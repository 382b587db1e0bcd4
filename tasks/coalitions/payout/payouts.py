"""From values to payouts: what part of a sum of money each source gets.

    proportional   p_s = max(v_s, 0) / sum of max(v, 0), the share
    floor          p_s = f / n + (1 - f) share_s: at least the part f of an equal split among n sources
    tokens         p_s = tokens_s / sum of tokens, for comparison

Payouts of a query add up to 1. Negative values stay signed in the ledger; only here they count as zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dataworth.tasks.coalitions.config import PayoutRule
from dataworth.tasks.coalitions.valuation import shares

__all__ = ["SMALL_SOURCES", "Payouts", "clipped_mass", "payouts", "published_names"]

SMALL_SOURCES = "(small sources)"


@dataclass(frozen=True)
class Payouts:
    """What each source gets of each query, and what was set to zero for it.

    Args:
        shares: (q, s) parts of the positive total; NaN where no value is positive.
        parts: (q, s) payouts by the rule, in parts of the whole; NaN likewise, except by tokens.
        clipped: (q,) see `clipped_mass`.
    """

    shares: np.ndarray
    parts: np.ndarray
    clipped: np.ndarray


def clipped_mass(values: Float[np.ndarray, "q s"]) -> Float[np.ndarray, " q"]:
    """Sum of the negative values, without their sign, over the sum of the positive ones; NaN where none is positive."""
    negative, positive = -np.minimum(values, 0.0).sum(axis=1), np.maximum(values, 0.0).sum(axis=1)
    return np.divide(negative, positive, out=np.full(len(values), np.nan), where=positive > 0)


def payouts(
    values: Float[np.ndarray, "q s"], n_tokens: Int[np.ndarray, " s"], rule: PayoutRule, floor: float
) -> Payouts:
    """Divide a whole of 1 among the sources, for every query.

    Args:
        values: of the sources, in whatever unit.
        n_tokens: of each source.
        rule: how.
        floor: the part of an equal split nobody gets less than, between 0 and 1; of the rule `floor`.
    """
    share = shares(values)
    if rule == "floor":
        parts = floor / max(1, values.shape[1]) + (1.0 - floor) * share
    elif rule == "tokens":
        total = n_tokens.sum()
        by_size = n_tokens / total if total > 0 else np.full(len(n_tokens), np.nan)
        parts = np.broadcast_to(by_size, values.shape).copy()
    else:
        parts = share
    return Payouts(share, parts, clipped_mass(values))


def published_names(names: Sequence[str], n_documents: Int[np.ndarray, " s"], minimum: int) -> list[str]:
    """(n_sources,) the name each source is published by: one for all with fewer than `minimum` documents."""
    return [SMALL_SOURCES if n < minimum else name for name, n in zip(names, n_documents.tolist(), strict=True)]
