"""Values from the training itself: what each source's documents took off the queries' loss while the base was trained.

No coalition is asked: the base is trained on everything, as --training says, and what was measured is divided among
those whose documents made it.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.estimation.estimators import with_total
from dataworth.tasks.coalitions.games.source_game import Material, SourceGame, UtilityKeeper
from dataworth.tasks.coalitions.valuation import COALITIONS, Valuation, with_queries
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.model.loading import LoadedModel, load
from dataworth.tasks.progress import progress
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.reach import RetrainedCheck
from dataworth.tasks.training.retraining import as_it_was, window_players

__all__ = ["Credited", "OneTraining", "Trained", "too_much_missed"]

# Part of what was measured that may go unaccounted for.
MAX_MISSED = 0.1


@dataclass(frozen=True)
class Trained:
    """What is trained, and whose it is.

    Args:
        base: where the training begins.
        corpus, queries: of the model.
        windows: of the corpus that are trained on.
        players: of each of these windows, from 0.
        names: of the players.
        training: how.
    """

    base: LoadedModel
    corpus: CorpusStore
    queries: CorpusStore
    windows: np.ndarray
    players: np.ndarray
    names: list[str]
    training: TrainingConfig


@dataclass(frozen=True)
class Credited:
    """What a training was divided into.

    Args:
        values: (q, s) nats that each player took off each query.
        before, after: (q,) nats of each query, measured before the training and after it.
        facts: printed beside the values.
        reason: why they are not to be trusted; empty where they are.
        documents: rows of DOCUMENT_VALUES (dataworth.storage.schema), where they are asked for.
    """

    values: Float[np.ndarray, "q s"]
    before: Float[np.ndarray, " q"]
    after: Float[np.ndarray, " q"]
    facts: dict[str, Any]
    reason: str = ""
    documents: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class AccountedCheck:
    """What was measured of a training and its books.

    Args:
        retrained: of the training.
        of_books: why they are not to be trusted; empty where they are.
    """

    retrained: RetrainedCheck
    of_books: str

    @property
    def reason(self) -> str:
        """Why it is not reliable; empty where it is."""
        return self.retrained.reason or self.of_books

    @property
    def reliable(self) -> bool:
        return not self.reason

    def facts(self) -> dict[str, Any]:
        """What is printed beside the values."""
        return {**self.retrained.facts(), "reliable": self.reliable}

    def sentences(self) -> list[str]:
        """For a log."""
        return self.retrained.sentences()


def too_much_missed(missed: float, remedy: str) -> str:
    """Why books are not to be trusted; empty where they are.

    Args:
        missed: part of what was measured that they do not account for.
        remedy: of too much.
    """
    if abs(missed) <= MAX_MISSED:
        return ""
    return f"{abs(missed):.0%} of what was measured is not accounted for, {remedy}"


class OneTraining(SourceGame):
    """Shares of what one training taught; a split changes nothing, copies in it share."""

    name: str

    def __init__(self, material: Material) -> None:
        super().__init__()
        self._confidence, parts, players = material.sources.confidence, material.needed, material.players
        if parts.training is None:
            raise ValueError(f"the game {self.name} needs to know how to train")
        queries, corpus = CorpusStore.open(parts.queries), CorpusStore.open(parts.corpus)
        self._model = query_losses(load(parts.model), queries)
        base = load(parts.model, 1.0)
        if base.sharded:
            raise InputError(f"{setting('model.shard')}: a model spread over processes cannot be trained again yet")
        of_windows = window_players(corpus, players.grouping, players.names)
        windows = np.flatnonzero(of_windows >= 0)
        trained = Trained(base, corpus, queries, windows, of_windows[windows], players.names, parts.training)
        with as_it_was(base), progress(self.name, 0, "step") as bar:

            def on_step(step: int, steps: int) -> None:
                bar.expect(steps)
                bar.advance()

            self._credited = self.divided(trained, material, on_step)

    @classmethod
    def made(cls, material: Material, kept: UtilityKeeper) -> Self:
        """Train the base once more."""
        return cls(material)

    @abstractmethod
    def divided(self, trained: Trained, material: Material, on_step: Callable[[int, int], None]) -> Credited:
        """Train, and divide what is measured.

        Args:
            trained: what.
            material: the game's settings.
            on_step: called with (step, steps) after each step.
        """

    def check(self) -> AccountedCheck:
        """Does the training lead to the model, and is what it taught accounted for?"""
        before, after = self._credited.before.sum(), self._credited.after.sum()
        retrained = RetrainedCheck(float(self._model.sum()), float(after), float(before))
        return AccountedCheck(retrained, self._credited.reason)

    def valuation(self) -> Valuation:
        """What each source was credited with."""
        values = with_total(self._credited.values)
        unknown = np.full(values.shape, np.nan)
        made = Valuation(values, {COALITIONS: np.zeros_like(values)}, unknown, unknown, self.name, self._credited.facts)
        return replace(with_queries(made, self._confidence), documents=self._credited.documents)
