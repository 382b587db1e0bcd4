"""The additive game: a coalition is worth the sum of its documents' scores.

Its Shapley value (and every other semivalue) of a source is that source's own sum, in closed form. Two copies of one
source are both paid in full.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t as student

from dataworth.tasks.coalitions.estimation.designs import Coalitions
from dataworth.tasks.coalitions.games.source_game import Material, SourceGame, UtilityKeeper
from dataworth.tasks.coalitions.valuation import DOCUMENTS, Valuation

__all__ = ["Additive", "AdditiveGame", "additive_valuation", "interval", "standard_errors"]

NAME = "additive"


class Additive(SourceGame):
    """Sums of scores, with the errors of the documents that a source happened to contribute."""

    def __init__(self, material: Material) -> None:
        super().__init__()
        self._players, self._confidence = material.players, material.sources.confidence

    @classmethod
    def made(cls, material: Material, kept: UtilityKeeper) -> "Additive":
        """Of the scores alone."""
        return cls(material)

    def valuation(self) -> Valuation:
        """Each source's own sum."""
        sums, squares = self._players.column("sum"), self._players.column("sum_of_squares")
        return additive_valuation(sums, squares, self._players.column("n_documents")[0], self._confidence)


def additive_valuation(
    sums: Float[np.ndarray, "r s"],
    squares: Float[np.ndarray, "r s"],
    counts: Int[np.ndarray, " s"],
    confidence: float,
) -> Valuation:
    """Values that are sums of scores.

    Args:
        sums, squares: sum and sum of squares of the scores of each source's documents.
        counts: documents of each source.
        confidence: of the intervals.
    """
    errors = standard_errors(sums, squares, counts)
    low, high = interval(sums, errors, counts, confidence)
    return Valuation(sums, {DOCUMENTS: errors}, low, high, NAME, {"errors": "of documents"})


def standard_errors(
    sums: Float[np.ndarray, "q s"], squares: Float[np.ndarray, "q s"], counts: Int[np.ndarray, " s"]
) -> Float[np.ndarray, "q s"]:
    """Standard error of a source's sum, had it contributed another sample of as many documents of its kind.

    sqrt(n) times the sample standard deviation of its documents' scores; NaN for a source of fewer than 2 documents.

    Args:
        sums, squares: sum and sum of squares of the scores of each source's documents.
        counts: documents of each source.
    """
    errors = np.full(sums.shape, np.nan)
    several = counts > 1
    n = counts[several].astype(np.float64)
    variance = np.maximum(squares[:, several] - sums[:, several] ** 2 / n, 0.0) / (n - 1)
    errors[:, several] = np.sqrt(n * variance)
    return errors


def interval(
    values: Float[np.ndarray, "q s"],
    errors: Float[np.ndarray, "q s"],
    counts: Int[np.ndarray, " s"],
    confidence: float,
) -> tuple[Float[np.ndarray, "q s"], Float[np.ndarray, "q s"]]:
    """Low and high end of Student's t interval with n - 1 degrees of freedom; NaN where there is no error."""
    quantile = student.ppf(0.5 + confidence / 2, np.maximum(counts - 1, 1))
    return values - quantile * errors, values + quantile * errors


@dataclass(frozen=True)
class AdditiveGame:
    """A coalition's utility is the sum of its members' scores.

    Args:
        sums: (n_queries, n_sources).
    """

    sums: np.ndarray

    @property
    def n_players(self) -> int:
        return self.sums.shape[1]

    def utilities(self, masks: Coalitions) -> Float[np.ndarray, "m q"]:
        """The members' sums added up."""
        return masks.astype(np.float64) @ self.sums.T
