"""How sure values are of the documents the sources happened to contribute, beside what else they are sure of.

A replicate of the jackknife plays the game again: in closed form, or with the coalitions and the estimator of the run
itself, so that the error of sampling coalitions is the same in all of them. Coalitions are worth what the queries'
expansion says, also where the run measured them. Parameters, damping and trust region stay those of all documents.
Time: a closed form, or an expanded worth of every coalition, for each group. Memory: the sums once more.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.estimation.estimators import exact
from dataworth.tasks.coalitions.estimation.sampling import ESTIMATORS, Sampled
from dataworth.tasks.coalitions.estimation.semivalues import size_weights
from dataworth.tasks.coalitions.estimation.utilities import Utility, Worths
from dataworth.tasks.coalitions.games.game import Game
from dataworth.tasks.coalitions.games.jackknife import SourceGroups, degrees_of_freedom, jackknife_errors
from dataworth.tasks.coalitions.games.newton import LayerSums
from dataworth.tasks.coalitions.play import Play
from dataworth.tasks.coalitions.player_values import Outcome
from dataworth.tasks.coalitions.uncertainty.quadrature import in_quadrature

__all__ = ["MAX_REPLAYED", "with_document_errors"]

# Coalitions of all replicates together. At 31 a second (200 sources, rank 16, 24 layers) they take 9 minutes.
MAX_REPLAYED = 2**14


@dataclass(frozen=True)
class _ReplicateSums:
    """Sums without a group of documents (see `dataworth.tasks.coalitions.play.Sums`)."""

    layers: list[LayerSums]
    damping: float
    damping_origin: str
    largest: float | None
    groups: SourceGroups | None = None


def with_document_errors(play: Play, sources: SourcesConfig, outcome: Outcome) -> Outcome:
    """The outcome with the cause `documents` in its errors and intervals, where it can be told; `facts` says why not.

    Args:
        play: whose sums are known by group.
        sources: the game that was played.
        outcome: of `play.values(sources, ...)`.
    """
    groups = play.sums.groups
    n_coalitions = int(outcome.facts.get("coalitions", 0))
    reason = _why_not(groups, n_coalitions)
    if groups is None or reason:
        said = f"{outcome.facts['errors']}; not of documents{reason}"
        return replace(outcome, facts=outcome.facts | {"errors": said})
    if play.vectors is not None and play.linear(sources):
        replicates = play.vectors.replicate_values(play.expansion.gradients)
    else:
        replicates = np.stack(
            [_replayed(_without(play, groups, number), sources, outcome.sampled) for number in range(groups.n_groups)]
        )
    errors, degrees = jackknife_errors(replicates, groups.counts), degrees_of_freedom(groups.counts)
    reach = student.ppf(0.5 + sources.confidence / 2, np.maximum(degrees, 1)) * errors
    causes = outcome.causes | {"documents": errors}
    said = f"{outcome.facts['errors']}; of documents, by leaving each of {groups.n_groups} groups of them out"
    return replace(
        outcome,
        errors=in_quadrature([outcome.errors, errors]),
        low=outcome.values - in_quadrature([outcome.values - outcome.low, reach]),
        high=outcome.values + in_quadrature([outcome.high - outcome.values, reach]),
        causes=causes,
        facts=outcome.facts | {"errors": said},
    )


def _why_not(groups: SourceGroups | None, n_coalitions: int) -> str:
    """Why documents have no errors, to be put behind a sentence; empty where they have."""
    if groups is None or groups.n_groups < 2:
        return " (--sources.document_groups 1)"
    if groups.n_groups * n_coalitions > MAX_REPLAYED:
        return (
            f", as {groups.n_groups} times {n_coalitions:,} coalitions are more than {MAX_REPLAYED:,}: "
            "lower --sources.budget or --sources.document_groups"
        )
    return ""


def _without(play: Play, groups: SourceGroups, number: int) -> Play:
    whole = play.sums
    sums = _ReplicateSums(groups.replicate(number), whole.damping, whole.damping_origin, whole.largest)
    return replace(play, sums=sums)


def _replayed(play: Play, sources: SourcesConfig, found: Sampled | None) -> Float[np.ndarray, "q s"]:
    """Values of every query and of all together, with the coalitions of the run."""
    closed = play.closed_form(sources)
    if closed is not None:
        return np.concatenate([closed[0], closed[0].sum(axis=0, keepdims=True)])
    if found is None:
        raise ValueError("the run had coalitions and did not keep them")
    worths = Worths(_with_total(play.expanded(sources)), play.n_players)
    weights = size_weights(play.n_players, sources.semivalue, sources.alpha, sources.beta)
    estimator = ESTIMATORS.get(found.estimate.estimator, exact)
    return estimator(found.design, worths(found.design), weights, sources.confidence).values


def _with_total(game: Game) -> Utility:
    """Worth for every query, and for all of them together in the last column."""

    def worth(masks: np.ndarray) -> np.ndarray:
        found = game.utilities(masks)
        return np.concatenate([found, found.sum(axis=1, keepdims=True)], axis=1)

    return worth
