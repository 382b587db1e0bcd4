"""What if: the shares had a source been absent, and what a source would gain by splitting itself.

Splitting is the known trick against Shapley payouts: where utilities saturate, p parts of a source meet the others in p
places of the order and get more together than the source alone. It gains nothing in the additive game, in any game
quadratic in the sums (`interaction`), and along a path (Aumann & Shapley 1974), whose values add up from documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dataworth.tasks.coalitions.estimation.estimators import Estimate
from dataworth.tasks.coalitions.valuation import shares

__all__ = ["SharesWithout", "SplitGain", "mean_estimate", "shares_without", "split_gain"]

# A gain below this part of the value is that of rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class SharesWithout:
    """Shares of all sources for each query had some been absent: 0 for these.

    Args:
        shares, low, high: (q, s); ends of the values' intervals over their positive total, which is taken as known.
    """

    shares: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class SplitGain:
    """What a source is worth to each query, whole and in parts.

    Args:
        whole: (q,) its value.
        in_parts: (q,) the sum of its parts' values.
        reach: (q,) the gain's interval is ± this: the intervals of all its values added up, so that it covers more
            than each of them; 0 where they are exact.
    """

    whole: np.ndarray
    in_parts: np.ndarray
    reach: np.ndarray

    @property
    def gain(self) -> Float[np.ndarray, " q"]:
        """How much more its parts get together; 0 where that is within rounding."""
        difference = self.in_parts - self.whole
        return np.where(np.abs(difference) <= ROUNDING * np.abs(self.whole), 0.0, difference)

    @property
    def relative(self) -> Float[np.ndarray, " q"]:
        """The gain as a part of the value's size; NaN where that is 0."""
        size = np.abs(self.whole)
        return np.divide(self.gain, size, out=np.full_like(size, np.nan), where=size > 0)


def mean_estimate(checkpoints: Sequence[Estimate]) -> Estimate:
    """The mean of what several checkpoints estimate of the same players.

    Errors and ends of intervals are means, too, as if all checkpoints erred alike: where they do not, the interval
    covers more than it says. How far the mean would move with other checkpoints, it does not tell.

    Args:
        checkpoints: at least one, of the same queries and players.
    """

    def mean(arrays: list[np.ndarray]) -> np.ndarray:
        means: np.ndarray = np.mean(arrays, axis=0)
        return means

    return Estimate(
        values=mean([each.values for each in checkpoints]),
        standard_errors=mean([each.standard_errors for each in checkpoints]),
        low=mean([each.low for each in checkpoints]),
        high=mean([each.high for each in checkpoints]),
        n_coalitions=max(each.n_coalitions for each in checkpoints),
        estimator=checkpoints[0].estimator,
    )


def shares_without(others: Estimate, absent: Sequence[int]) -> SharesWithout:
    """Shares had some sources been absent.

    Args:
        others: values of the players of `portions.all_but(n_sources, absent)`.
        absent: numbers of the absent sources among all.
    """
    totals = np.maximum(others.values, 0.0).sum(axis=1, keepdims=True)
    ends = (
        np.divide(np.maximum(end, 0.0), totals, out=np.full_like(others.values, np.nan), where=totals > 0)
        for end in (others.low, others.high)
    )
    places = [number - earlier for earlier, number in enumerate(sorted(absent))]
    return SharesWithout(*(np.insert(present, places, 0.0, axis=1) for present in (shares(others.values), *ends)))


def split_gain(whole: Estimate, parts: Estimate, source: int) -> SplitGain:
    """What a source would gain by splitting itself in equal parts.

    Args:
        whole: values of all sources.
        parts: values of the players of `portions.divided(n_sources, source, …)`.
        source: its number.
    """
    columns = [source, *range(whole.values.shape[1], parts.values.shape[1])]
    reach = _reach(whole)[:, source] + _reach(parts)[:, columns].sum(axis=1)
    return SplitGain(whole.values[:, source], parts.values[:, columns].sum(axis=1), reach)


def _reach(estimate: Estimate) -> np.ndarray:
    """(q, s) from each value to the farther end of its interval."""
    return np.maximum(estimate.high - estimate.values, estimate.values - estimate.low)
