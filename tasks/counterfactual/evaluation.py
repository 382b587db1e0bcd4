"""What an audit finds: every method held against what trainings on subsets, and without sources and documents, did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from dataworth.tasks.counterfactual.lds import Agreement, ceiling, difference, lds, predicted, rank_correlations

__all__ = ["REACH", "Truth", "ceiling_row", "mean_with_error", "method_rows", "source_rows"]

# Of a normal distribution, for intervals of 95 %.
REACH = 1.959963984540054


@dataclass(frozen=True)
class Truth:
    """What was measured after training on subsets.

    Args:
        masks: (m, n) documents of each subset.
        outcomes: (r, q, m) minus the loss of each query, by seed.
    """

    masks: Bool[np.ndarray, "m n"]
    outcomes: Float[np.ndarray, "r q m"]

    def part(self, subsets: np.ndarray, queries: np.ndarray) -> "Truth":
        """The same for some subsets and queries."""
        return Truth(self.masks[subsets], self.outcomes[:, queries][:, :, subsets])

    def agreement(self, scores: Float[np.ndarray, "q n"]) -> Agreement:
        """The linear datamodeling score of a method."""
        return lds(predicted(scores, self.masks), self.outcomes.mean(axis=0))


def ceiling_row(truth: Truth) -> dict[str, Any]:
    """The noise ceiling with its error, or why there is none."""
    if len(truth.outcomes) < 2:
        return {"lds": None, "standard_error": None}
    return _score(ceiling(truth.outcomes))


def method_rows(scores: Mapping[str, np.ndarray], truth: Truth) -> list[dict[str, Any]]:
    """A row a method: its score with errors, and how much it is below the first, paired, with an interval of 95 %.

    Args:
        scores: (q, n) of documents, by method; the first is what others are compared with.
        truth: to be predicted.
    """
    agreements = {name: truth.agreement(each) for name, each in scores.items()}
    first = next(iter(agreements.values()))
    rows = []
    for name, agreement in agreements.items():
        below = difference(first, agreement)
        reach = REACH * below.standard_error
        rows.append(
            {
                "method": name,
                **_score(agreement),
                "below_first": below.mean,
                "below_first_low": below.mean - reach,
                "below_first_high": below.mean + reach,
                "tied_with_first": bool(abs(below.mean) <= reach) or agreement is first,
            }
        )
    return rows


def _score(agreement: Agreement) -> dict[str, Any]:
    return {
        "lds": agreement.mean,
        "standard_error": agreement.standard_error,
        "error_subsets": agreement.error_subsets,
        "error_queries": agreement.error_queries,
    }


def source_rows(
    scores: Mapping[str, np.ndarray],
    absent: Bool[np.ndarray, "s n"],
    outcomes: Float[np.ndarray, "r q s"],
    everything: Float[np.ndarray, "r q"],
) -> dict[str, tuple[float, float]]:
    """By method the rank correlation, over sources, of what leaving one out does and what was predicted.

    Args:
        scores: (q, n) of documents.
        absent: (s, n) documents of each source.
        outcomes: (r, q, s) minus the losses without each source.
        everything: (r, q) minus the losses after training on all documents.

    Returns:
        Mean over queries and its standard error over queries.
    """
    lost = (everything[:, :, None] - outcomes).mean(axis=0)
    return {name: mean_with_error(rank_correlations(predicted(each, absent), lost)) for name, each in scores.items()}


def mean_with_error(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and its standard error; NaN without any, and of one."""
    sample = np.asarray(values, np.float64)
    if len(sample) == 0:
        return float("nan"), float("nan")
    error = float(sample.std(ddof=1) / np.sqrt(len(sample))) if len(sample) > 1 else float("nan")
    return float(sample.mean()), error
