"""How far a mean of a few seeds lies from its own expectation: what no method can be held to.

With S seeds of variance s^2 the mean of all has variance s^2 / S, and a seed left out lies from the mean of the others
with variance s^2 S / (S - 1). A total variation of shares grows as the standard deviation where shares move little, so

    E TV(mean of S, its expectation) = sqrt(S - 1) / S  mean over seeds of TV(the seed, the mean of the others)

Of rank correlations it is the reliability of a mean of S (Spearman 1910; Brown 1910): with r the mean correlation of
two seeds the mean correlates S r / (1 + (S - 1) r) with such another mean, and with its expectation the root of that.
"""

from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr

from dataworth.tasks.coalitions.valuation import shares

__all__ = ["rank_ceiling", "share_error", "share_floor"]


def share_error(values: Float[np.ndarray, " s"], truth: Float[np.ndarray, " s"]) -> float:
    """Total variation of the positive shares, from 0 to 1; NaN where no value is positive."""
    one, two = shares(values[None])[0], shares(truth[None])[0]
    return float(np.abs(one - two).sum() / 2)


def share_floor(by_seed: Float[np.ndarray, "r s"]) -> float:
    """Expected share error of the mean of all seeds against its own expectation.

    Args:
        by_seed: values by each seed, at least two.
    """
    n = len(by_seed)
    others = (by_seed.sum(axis=0) - by_seed) / (n - 1)
    apart = [share_error(own, rest) for own, rest in zip(by_seed, others, strict=True)]
    return float(np.sqrt(n - 1) / n * np.mean(apart))


def rank_ceiling(by_seed: Float[np.ndarray, "r s"]) -> float:
    """Expected rank correlation of the mean of all seeds with its own expectation; 0 where seeds agree on nothing.

    Args:
        by_seed: values by each seed, at least two.
    """
    n = len(by_seed)
    alike = float(np.mean([spearmanr(one, two).statistic for one, two in combinations(by_seed, 2)]))
    return float(np.sqrt(max(n * alike / (1 + (n - 1) * alike), 0.0))) if alike > 0 else 0.0
