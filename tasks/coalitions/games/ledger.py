"""Values from the training itself: what each source's documents took off the queries' loss while the base was trained.

No coalition is asked: the base is trained once more on everything, as --training says, and every step's fall of the
loss is divided among those whose documents made it (see tasks/training/ledger.py).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.estimation.estimators import with_total
from dataworth.tasks.coalitions.games.source_game import Material, SourceGame, UtilityKeeper
from dataworth.tasks.coalitions.valuation import COALITIONS, Valuation, with_queries
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.model.loading import LoadedModel, load
from dataworth.tasks.progress import progress
from dataworth.tasks.training.ledger import Credits
from dataworth.tasks.training.reach import RetrainedCheck
from dataworth.tasks.training.retraining import as_it_was, window_players
from dataworth.tasks.training.training_with_ledger import ledger_of

__all__ = ["LedgerGame"]

NAME = "ledger"
# Part of what was measured that may go unaccounted for.
MAX_MISSED = 0.1


@dataclass(frozen=True)
class LedgerCheck:
    """What was measured of a ledger.

    Args:
        retrained: of its training.
        missed: part of what was measured that it does not account for.
    """

    retrained: RetrainedCheck
    missed: float

    @property
    def reason(self) -> str:
        """Why it is not reliable; empty where it is."""
        if self.retrained.reason or abs(self.missed) <= MAX_MISSED:
            return self.retrained.reason
        return (
            f"the ledger misses {abs(self.missed):.0%} of what was measured, as its steps are long or its weights of "
            f"few digits: lower {setting('sources.ledger_every')}, or pass {setting('model.dtype')} float32"
        )

    @property
    def reliable(self) -> bool:
        return not self.reason

    def facts(self) -> dict[str, Any]:
        """What is printed beside the values."""
        return {**self.retrained.facts(), "reliable": self.reliable}

    def sentences(self) -> list[str]:
        """For a log."""
        return self.retrained.sentences()


class LedgerGame(SourceGame):
    """Shares of what one training taught; copies in it share, and a split changes nothing."""

    def __init__(self, material: Material) -> None:
        super().__init__()
        self._confidence, parts, players = material.sources.confidence, material.needed, material.players
        if parts.training is None:
            raise ValueError("the game ledger needs to know how to train")
        queries, corpus = CorpusStore.open(parts.queries), CorpusStore.open(parts.corpus)
        self._model = query_losses(load(parts.model), queries)
        base = load(parts.model, 1.0)
        if base.sharded:
            raise InputError(f"{setting('model.shard')}: a model spread over processes cannot be trained again yet")
        of_windows, n_players = window_players(corpus, players.grouping, players.names), len(players.names)
        windows = np.flatnonzero(of_windows >= 0)
        _refuse_too_large(base, n_players)
        with as_it_was(base), progress("training", 0, "step") as bar:

            def on_step(step: int, steps: int) -> None:
                bar.expect(steps)
                bar.advance()

            owners, every = of_windows[windows], material.sources.ledger_every
            self._ledger: Credits = ledger_of(
                base, corpus, windows, owners, n_players, queries, parts.training, every, on_step
            )

    @classmethod
    def made(cls, material: Material, kept: UtilityKeeper) -> "LedgerGame":
        """Train the base once more."""
        return cls(material)

    def check(self) -> "LedgerCheck":
        """Does the training lead to the model, and does the ledger account for it?"""
        measured = self._ledger.measured.sum(axis=1)
        retrained = RetrainedCheck(float(self._model.sum()), float(measured[-1]), float(measured[0]))
        return LedgerCheck(retrained, self._ledger.missed)

    def valuation(self) -> Valuation:
        """What each source was credited with."""
        ledger = self._ledger
        values = with_total(ledger.values.T)
        unknown = np.full(values.shape, np.nan)
        facts = {
            "estimator": "one training, step by step",
            "credited to weight decay": float(ledger.decay.sum()),
            "missed by the ledger": ledger.missed,
        }
        made = Valuation(values, {COALITIONS: np.zeros_like(values)}, unknown, unknown, NAME, facts)
        return with_queries(made, self._confidence)


def _refuse_too_large(base: LoadedModel, n_players: int) -> None:
    """Three copies of the weights a player, in float32, must fit into memory beside the training.

    Raises:
        InputError: they do not.
    """
    if base.device.type != "cpu":  # whose memory is asked for as it is used, and refused by a sentence
        return
    needed = 4 * (3 * n_players + 6) * sum(weight.numel() for weight in base.model.parameters())
    free = base.free_memory
    if needed > free:
        raise InputError(
            f"the game {NAME}: books of {n_players:,} sources need about {needed / 1e9:.0f} GB of memory, and "
            f"{free / 1e9:.0f} GB are free: value coarser sources ({setting('sources.by')})"
        )
