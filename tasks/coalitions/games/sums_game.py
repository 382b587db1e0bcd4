"""Games over sums of gradients and curvatures by source: in closed form, or by asking coalitions."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from dataworth.storage.schema import ALL_QUERIES
from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.estimation.estimators import Estimate, exact, with_total
from dataworth.tasks.coalitions.estimation.sampling import ESTIMATORS, MAX_ENUMERATED, Sampled
from dataworth.tasks.coalitions.estimation.semivalues import size_weights
from dataworth.tasks.coalitions.estimation.utilities import Utilities
from dataworth.tasks.coalitions.games.groups import SourceGroups
from dataworth.tasks.coalitions.games.model_game import play_of
from dataworth.tasks.coalitions.games.newton_steps import LayerSums
from dataworth.tasks.coalitions.games.play import Play
from dataworth.tasks.coalitions.games.portions import known_utilities
from dataworth.tasks.coalitions.games.source_game import (
    Check,
    Game,
    Material,
    SourceGame,
    UtilityKeeper,
    asked,
    game_class,
    valuation_of,
)
from dataworth.tasks.coalitions.payout.overlap import overlap_rows
from dataworth.tasks.coalitions.uncertainty.jackknife import degrees_of_freedom, jackknife_errors
from dataworth.tasks.coalitions.valuation import DOCUMENTS, Valuation, with_queries

__all__ = ["MAX_REPLAYED", "SumsGame", "game_on"]

# Coalitions of all replicates together. At 31 a second (200 sources, rank 16, 24 layers) they take 9 minutes.
MAX_REPLAYED = 2**14


@dataclass(frozen=True)
class _ReplicateSums:
    """Sums without a group of documents (see `dataworth.tasks.coalitions.games.play.Sums`)."""

    layers: list[LayerSums]
    damping: float
    damping_origin: str
    largest: float | None
    groups: SourceGroups | None = None


class SumsGame(SourceGame):
    """A game of some sources and queries.

    How sure values are of the documents the sources happened to contribute is told by replicates of the jackknife. Each
    plays the game again: in closed form, or with the coalitions and the estimator of the run itself, so that the error
    of sampling coalitions is the same in all of them. Coalitions are worth what the queries' expansion says, also where
    the run measured them. Parameters, damping and trust region stay those of all documents.
    Time: a closed form, or an expanded utility of every coalition, for each group. Memory: the sums once more.

    Args:
        play: what it is played on.
        sources: its settings.
        kept: what is known of its coalitions, and gets to know.
    """

    utility = "quadratic"

    def __init__(self, play: Play, sources: SourcesConfig, kept: UtilityKeeper) -> None:
        super().__init__()
        self.play, self.sources, self.kept = play, sources, kept
        self.material: Material | None = None

    @classmethod
    def made(cls, material: Material, kept: UtilityKeeper) -> Self:
        """Read the sums.

        Raises:
            InputError: the model cannot be loaded, or a source has no example.
        """
        play = play_of(material.needed, material.players.names, material.sources.pull)
        game = cls(play, material.sources, kept)
        game.material = material
        return game

    def on(self, play: Play) -> Self:
        """The same game of other sums or players."""
        return type(self)(play, self.sources, self.kept)

    def closed_form(self) -> Float[np.ndarray, "q s"] | None:
        """Values in closed form, where the game has one."""
        return None

    @abstractmethod
    def expanded(self) -> Game:
        """Utilities of coalitions of the players, without a forward pass."""

    def game(self) -> Game:
        """Utilities of coalitions of the players, as they are asked for."""
        return self.expanded()

    def surrogate(self) -> Game | None:
        """Without a forward pass."""
        return self.expanded()

    @property
    def title(self) -> str:
        """What a table calls it."""
        return self.sources.game

    @property
    def affords_all(self) -> bool:
        """Every coalition may be asked for, whatever the budget."""
        return self.play.n_players <= MAX_ENUMERATED

    @property
    def at_once(self) -> int | None:
        """Coalitions after which utilities are kept; None: all that are asked for together."""
        return None

    def check(self) -> Check:
        """Against measured losses."""
        return self.play.checked()

    def valuation(self) -> Valuation:
        """Values with the errors of coalitions, queries and documents, and the sources' overlap."""
        if self.material is None:
            return self.played()
        self.prepare(self.material)
        overlap = overlap_rows(self.material.players.names, self.play.interactions(), ALL_QUERIES)
        return replace(self.played(), overlap=overlap, documents=self.documents(self.material))

    def prepare(self, material: Material) -> None:
        """Have stores and a cluster do for it what they can."""

    def documents(self, material: Material) -> list[dict[str, Any]] | None:
        """Rows of DOCUMENT_VALUES of dataworth.storage.schema, where they are asked for."""
        return None

    def played(self) -> Valuation:
        """Everybody's value, and the errors of coalitions, queries and documents."""
        values, sampled = self.valued()
        facts = {"damping": self.play.sums.damping, "damping from": self.play.sums.damping_origin}
        valuation = with_queries(values.with_facts(**facts), self.sources.confidence)
        return self._with_documents(valuation, sampled)

    def valued(self) -> tuple[Valuation, Sampled | None]:
        """Values in closed form where there is one, else from coalitions, which are told, too."""
        closed = self.closed_form()
        if closed is not None:
            return Valuation.of_estimate(_of_closed(closed), self.sources.game, {}, exact=True), None
        sampled = self._asked()
        return valuation_of(sampled, self.sources.game, self.utility), sampled

    def estimate(self) -> Estimate:
        """The same values with the errors of sampled coalitions alone."""
        closed = self.closed_form()
        return self._asked().estimate if closed is None else _of_closed(closed)

    def replicates(self, groups: SourceGroups, sampled: Sampled | None) -> Float[np.ndarray, "g r s"]:
        """Values without each group of documents."""
        return np.stack([self.on(self._without(groups, n)).again(sampled) for n in range(groups.n_groups)])

    def again(self, sampled: Sampled | None) -> Float[np.ndarray, "r s"]:
        """Values of every query and of all together, with the coalitions of a run."""
        closed = self.closed_form()
        if closed is not None:
            return with_total(closed)
        if sampled is None:
            raise ValueError("the run had coalitions and did not keep them")
        game, sources = self.expanded(), self.sources
        utilities = Utilities(lambda masks: with_total(game.utilities(masks).T).T, self.play.n_players)
        weights = size_weights(self.play.n_players, sources.semivalue, sources.alpha, sources.beta)
        estimator = ESTIMATORS.get(sampled.estimate.estimator, exact)
        return estimator(sampled.design, utilities(sampled.design), weights, sources.confidence).values

    def _asked(self) -> Sampled:
        known = None
        if self.play.portions is not None:
            there = self.kept.known(self.play.n_sources, self.play.n_queries)
            known = known_utilities(*there, self.play.portions)
        return asked(self.game(), self.play.n_queries, self.sources, self.kept, known, self.at_once)

    def _without(self, groups: SourceGroups, number: int) -> Play:
        whole = self.play.sums
        sums = _ReplicateSums(groups.replicate(number), whole.damping, whole.damping_origin, whole.largest)
        return replace(self.play, sums=sums)

    def _with_documents(self, valuation: Valuation, sampled: Sampled | None) -> Valuation:
        """With the cause `documents`, where it can be told; `facts` say why not."""
        groups = self.play.sums.groups
        reason = _why_not(groups, int(valuation.facts.get("coalitions", 0)))
        if groups is None or reason:
            return valuation.with_facts(errors=f"{valuation.facts['errors']}; not of documents{reason}")
        errors = jackknife_errors(self.replicates(groups, sampled), groups.counts)
        degrees = degrees_of_freedom(groups.counts)
        reach = student.ppf(0.5 + self.sources.confidence / 2, np.maximum(degrees, 1)) * errors
        said = f"{valuation.facts['errors']}; of documents, by leaving each of {groups.n_groups} groups of them out"
        return valuation.with_cause(DOCUMENTS, errors, reach).with_facts(errors=said)


def game_on(play: Play, sources: SourcesConfig, kept: UtilityKeeper) -> SumsGame:
    """The game of some settings, of sums that are there already.

    Raises:
        ValueError: the game is not one of sums.
    """
    game = game_class(sources.game)
    if not issubclass(game, SumsGame):
        raise ValueError(f"the game {sources.game} is not one of sums")
    return game(play, sources, kept)


def _of_closed(by_query: Float[np.ndarray, "q s"]) -> Estimate:
    whole = with_total(by_query)
    return Estimate(whole, np.zeros_like(whole), whole, whole, 0, "closed form")


def _why_not(groups: SourceGroups | None, n_coalitions: int) -> str:
    """Why documents have no errors, to be put behind a sentence; empty where they have."""
    if groups is None or groups.n_groups < 2:
        return f" ({setting('sources.document_groups')} 1)"
    if groups.n_groups * n_coalitions > MAX_REPLAYED:
        return (
            f", as {groups.n_groups} times {n_coalitions:,} coalitions are more than {MAX_REPLAYED:,}: "
            f"lower {setting('sources.budget')} or {setting('sources.document_groups')}"
        )
    return ""
