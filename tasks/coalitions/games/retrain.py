"""The game retrain: a coalition's utility is measured after training the base on its documents, and on no others."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from dataworth.storage.coalitions import UtilityStore
from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.coalitions.estimation.designs import Coalitions, coalition_rows
from dataworth.tasks.coalitions.estimation.utilities import Utilities
from dataworth.tasks.coalitions.games.source_game import (
    Material,
    SourceGame,
    UtilityKeeper,
    asked,
    valuation_of,
)
from dataworth.tasks.coalitions.games.spread import SpreadRows, game_client
from dataworth.tasks.coalitions.valuation import Valuation, with_queries
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.model.loading import load
from dataworth.tasks.progress import progress, run_logger
from dataworth.tasks.training.reach import RetrainedCheck
from dataworth.tasks.training.retraining import Retrained

__all__ = ["Retrain", "RetrainedGame"]


@dataclass(frozen=True)
class RetrainedGame:
    """What training on a coalition's documents, and on no others, is measured to come to.

    Args:
        losses_after: from coalitions (m, s) to the losses of the queries (m, n_queries), nats.
        n_queries: of them.
        n_players: sources.
    """

    losses_after: Callable[[np.ndarray], np.ndarray]
    n_queries: int
    n_players: int

    def utilities(self, masks: Coalitions) -> Float[np.ndarray, "m q"]:
        """Minus the measured losses."""
        return -self.losses_after(masks)


class Retrain(SourceGame):
    """The truth, as far as one training a coalition tells it; the base is trained again and again.

    Args:
        material: with how to train.
        kept: utilities of coalitions that were trained on, and gets to know.
        most: trainings at most; None: as the settings say.

    n_trained: coalitions that were trained on now.
    base, everybody: (q,) measured losses of the base and of the model, nats.
    """

    def __init__(self, material: Material, kept: UtilityKeeper, most: int | None = None) -> None:
        super().__init__()
        self._material, self._kept, self.n_trained = material, kept, 0
        sources, n_players = material.sources, len(material.players.names)
        self._most = most or min(2**n_players, sources.trainings or sources.most_coalitions)
        parts, players = material.needed, material.players
        if parts.training is None:
            raise ValueError("the game retrain needs to know how to train")
        self._retrained = Retrained(
            parts.model, parts.corpus, parts.queries, players.grouping, tuple(players.names), parts.training
        )
        queries = CorpusStore.open(parts.queries)
        self.base = query_losses(load(parts.model, 1.0), queries)
        self.everybody = query_losses(load(parts.model), queries)

    @classmethod
    def made(cls, material: Material, kept: UtilityKeeper) -> "Retrain":
        """Measure the model and its base."""
        return cls(material, kept)

    def check(self) -> RetrainedCheck:
        """Does training on everything lead to the model?"""
        everybody = self.of(np.ones((1, len(self._material.players.names)), bool))
        return RetrainedCheck(float(self.everybody.sum()), -float(everybody.sum()), float(self.base.sum()))

    def of(self, masks: Bool[np.ndarray, "m s"]) -> Float[np.ndarray, "m q"]:
        """Utilities of different coalitions: known, or asked for and kept."""
        utilities: np.ndarray = Utilities(self.utilities, masks.shape[1], self.known())(masks)
        return utilities

    def valuation(self) -> Valuation:
        """From coalitions, exact or sampled."""
        sources = self._material.sources
        sample = asked(self._game, len(self.base), sources, self._kept, at_once=self._at_once)
        return with_queries(valuation_of(sample, sources.game, "retrained"), sources.confidence)

    def known(self) -> tuple[Bool[np.ndarray, "k s"], Float[np.ndarray, "k q"]]:
        """Nobody, coalitions that were trained on, and their utilities."""
        masks, utilities = self._kept.known(len(self._material.players.names), len(self.base))
        nobody = np.zeros((1, masks.shape[1]), bool)
        return np.concatenate([nobody, masks]), np.concatenate([-self.base[None], utilities])

    def utilities(self, masks: Bool[np.ndarray, "m s"]) -> Float[np.ndarray, "m q"]:
        """Train on coalitions that are not known yet; each is kept as it ends."""
        return self._trained(masks, self._game)

    def _trained(self, masks: np.ndarray, game: RetrainedGame) -> np.ndarray:
        measured = [np.empty((0, len(self.base)))]
        for first in range(0, len(masks), self._at_once):
            part = masks[first : first + self._at_once]
            measured.append(game.utilities(part))
            self._kept.add(part, measured[-1])
            self.n_trained += len(part)
        return np.concatenate(measured)

    def train_for_weights(self, masks: Bool[np.ndarray, "m s"], weights: UtilityStore) -> None:
        """Train on coalitions whose weights are not kept, whatever is known of them.

        Args:
            masks: of the coalitions.
            weights: the store that keeps both, utilities and weights.
        """
        missing = masks[~weights.have_weights(masks)]
        if len(missing):
            known, _ = self.known()
            again = int(np.isin(coalition_rows(missing), coalition_rows(known)).sum())
            if again:
                said = "%d coalitions are trained on again, as their weights were not kept: models are merged of them"
                run_logger().info(said, again)
            self._trained(missing, self._game_of(replace(self._retrained, weights=str(weights.path))))

    @property
    def _at_once(self) -> int:
        """Trainings that a cluster does at a time."""
        return 1 if self._client is None else max(1, sum(self._client.nthreads().values()))

    @cached_property
    def _client(self) -> Any:
        return self.resources.enter_context(game_client(self._material.cluster, self._most))

    @cached_property
    def _bar(self) -> Any:
        return self.resources.enter_context(progress("trainings", self._most, "training"))

    @cached_property
    def _game(self) -> RetrainedGame:
        return self._game_of(self._retrained)

    def _game_of(self, retrained: Retrained) -> RetrainedGame:
        losses_after = retrained if self._client is None else SpreadRows(retrained, self._client)

        def counted(masks: np.ndarray) -> np.ndarray:
            losses = losses_after(masks)
            self._bar.advance(len(masks))
            return losses

        return RetrainedGame(counted, len(self.base), len(self._material.players.names))
