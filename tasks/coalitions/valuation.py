"""What players are worth: one type, whatever the game that tells it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from dataworth.tasks.coalitions.estimation.estimators import Estimate

__all__ = [
    "ASKED_NOW",
    "COALITIONS",
    "DOCUMENTS",
    "QUERIES",
    "Kind",
    "Valuation",
    "in_quadrature",
    "shares",
    "with_queries",
]

# Causes of errors (see CAUSES of dataworth.storage.schema).
COALITIONS, DOCUMENTS, QUERIES = "coalitions", "documents", "queries"
# Among the facts of a valuation, how many coalitions a run asked for; what is kept of values does not depend on it.
ASKED_NOW = "coalitions evaluated now"

# marginal: what the loss of the queries would gain without a player now, at the end of training. share: a part of what
# training took off it, from the base to the model. certified: a part of that as trainings measured it.
Kind = Literal["marginal", "share", "certified"]


@dataclass(frozen=True)
class Valuation:
    """Values of players for every query and, in the last row, for all queries together, and how sure they are.

    One convention for every error and end of an interval: NaN says that nothing tells it. An error of 0 says that
    nothing is left to chance in that respect.

    Args:
        values: (n_queries + 1, n_players), nats.
        causes: (n_queries + 1, n_players) standard errors by what they are of; together they add up in quadrature. A
            cause that is not there was not looked at.
        low, high: (n_queries + 1, n_players) ends of the intervals.
        game: that told the values.
        facts: what is printed beside them.
        kind: what the values are.
        total: (n_queries + 1,) nats that training took off the queries' losses; None where no base is known.
        overlap, documents: rows of OVERLAP and DOCUMENT_VALUES of dataworth.storage.schema, where the game tells.
    """

    values: np.ndarray
    causes: Mapping[str, np.ndarray]
    low: np.ndarray
    high: np.ndarray
    game: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "marginal"
    total: np.ndarray | None = None
    overlap: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None

    @classmethod
    def of_estimate(cls, estimate: Estimate, game: str, facts: Mapping[str, Any], *, exact: bool) -> "Valuation":
        """Values from coalitions, or in closed form.

        Args:
            estimate: values with the errors of sampled coalitions.
            game: that was played.
            facts: of it.
            exact: no coalition that counts is left out, so that an interval of its own says nothing.
        """
        if exact:
            unknown = np.full(estimate.values.shape, np.nan)
            return cls(estimate.values, {COALITIONS: np.zeros_like(estimate.values)}, unknown, unknown, game, facts)
        return cls(estimate.values, {COALITIONS: estimate.standard_errors}, estimate.low, estimate.high, game, facts)

    @property
    def errors(self) -> Float[np.ndarray, "r p"]:
        """Standard errors of all causes that are known. NaN where none is, or where coalitions are too few to tell.

        That no coalition is left out does not make a value exact of which nothing else is known: it is NaN, too.
        """
        total = in_quadrature(list(self.causes.values()))
        sampled = self.causes.get(COALITIONS)
        if sampled is None:
            return total
        beside = [errors for cause, errors in self.causes.items() if cause != COALITIONS]
        alone = np.isnan(np.stack([np.full(total.shape, np.nan), *beside])).all(axis=0)
        return np.where(np.isnan(sampled) | (alone & (sampled == 0)), np.nan, total)

    def with_cause(self, cause: str, errors: Float[np.ndarray, "r p"], reach: Float[np.ndarray, "r p"]) -> "Valuation":
        """The same with one cause of errors more.

        Args:
            cause: its name.
            errors: standard errors; NaN where it tells nothing.
            reach: of its own interval to both sides; NaN there, too.
        """
        untold = np.isnan(self.causes[COALITIONS]) if COALITIONS in self.causes else np.zeros(self.values.shape, bool)
        low, high = (
            np.where(untold, np.nan, in_quadrature([end, reach]))
            for end in (self.values - self.low, self.high - self.values)
        )
        causes = {**self.causes, cause: errors}
        return replace(self, causes=causes, low=self.values - low, high=self.values + high)

    def scaled(self, factor: float) -> "Valuation":
        """The same, every value, error and end of an interval times a factor, which is told beside them."""
        scaled = replace(
            self,
            values=self.values * factor,
            causes={name: errors * factor for name, errors in self.causes.items()},
            low=self.low * factor,
            high=self.high * factor,
        )
        return scaled.with_facts(**{"scaled by": factor})

    def with_facts(self, **facts: Any) -> "Valuation":
        """The same with more to be printed, or other words."""
        return replace(self, facts={**self.facts, **facts})


def with_queries(valuation: Valuation, confidence: float) -> Valuation:
    """The error of the last row also tells how it would move had other queries been asked."""
    errors = np.full(valuation.values.shape, np.nan)
    n_queries = len(errors) - 1
    if n_queries > 1:
        errors[-1] = np.sqrt(n_queries) * valuation.values[:-1].std(axis=0, ddof=1)
    reach = student.ppf(0.5 + confidence / 2, max(n_queries - 1, 1)) * errors
    said = "of sampled coalitions, and in the row of all queries of the queries asked"
    facts = {"sum of values": float(valuation.values[-1].sum()), "errors": said}
    return valuation.with_cause(QUERIES, errors, reach).with_facts(**facts)


def shares(values: Float[np.ndarray, "q s"]) -> Float[np.ndarray, "q s"]:
    """Each source's part of its query's positive total: 0 for a negative value, NaN where none is positive."""
    positive = np.maximum(values, 0.0)
    totals = positive.sum(axis=1, keepdims=True)
    return np.divide(positive, totals, out=np.full_like(positive, np.nan), where=totals > 0)


def in_quadrature(parts: list[np.ndarray]) -> np.ndarray:
    """Root of the sum of the squares of what is known; NaN where nothing is."""
    stacked = np.stack(parts)
    total: np.ndarray = np.sqrt(np.nansum(stacked**2, axis=0))
    return np.where(np.isnan(stacked).all(axis=0), np.nan, total)
