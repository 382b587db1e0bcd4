"""Every step's fall of the queries' loss, divided among those whose documents made it (tasks/training/ledger.py)."""

from collections.abc import Callable

import numpy as np

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.games.one_training import Credited, OneTraining, Trained
from dataworth.tasks.coalitions.games.source_game import Material
from dataworth.tasks.model.loading import LoadedModel
from dataworth.tasks.training.checkpoint_ledger import ledger_of_checkpoints
from dataworth.tasks.training.training_with_ledger import ledger_of

__all__ = ["LedgerGame"]


class LedgerGame(OneTraining):
    """By one training, step by step."""

    name = "ledger"

    @property
    def remedy(self) -> str:  # type: ignore[override]  # said when asked, as settings are spelled
        return (
            f"as steps are long or weights of few digits: lower {setting('sources.ledger_every')}, or pass "
            f"{setting('model.dtype')} float32"
        )

    def divided(self, trained: Trained, material: Material, on_step: Callable[[int, int], None]) -> Credited:
        """Train once; where there are checkpoints of the training, not at all."""
        base, n_players = trained.base, len(trained.names)
        if material.sources.checkpoints:
            _refuse_too_large(base, n_players, copies=1)
            return _on_the_way(trained, material, on_step)
        _refuse_too_large(base, n_players, copies=3)
        ledger = ledger_of(
            base, trained.corpus, trained.windows, trained.players, n_players, trained.queries, trained.training,
            material.sources.ledger_every, on_step,
        )  # fmt: skip
        facts = {
            "estimator": "one training, step by step",
            "credited to weight decay": float(ledger.decay.sum()),
            "missed by the ledger": ledger.missed,
        }
        return Credited(ledger.values.T, ledger.measured[0], ledger.measured[-1], ledger.missed, facts)


def _on_the_way(trained: Trained, material: Material, on_step: Callable[[int, int], None]) -> Credited:
    """By the checkpoints of the training, which is not carried out; what they tell is scaled to what was measured."""
    model = material.needed.model
    between = [model.model_copy(update={"name": name}) for name in material.sources.checkpoints]
    ledger = ledger_of_checkpoints(
        [*between, model], trained.corpus, trained.windows, trained.players, len(trained.names), trained.queries,
        trained.training, on_step,
    )  # fmt: skip
    taken, told = float(ledger.fall.sum()), float(ledger.values.sum())
    facts = {
        "estimator": f"the way through {len(between)} checkpoints",
        "missed half-way": ledger.missed,
    }
    values = ledger.values.T
    # Of values that cancel each other, what is left over would be scaled.
    if taken > 0 and told > np.abs(ledger.values.sum(axis=1)).sum() / 2:
        facts["scaled by"] = taken / told
        values = values * (taken / told)
    return Credited(values, ledger.measured[0], ledger.measured[-1], ledger.missed, facts)


def _refuse_too_large(base: LoadedModel, n_players: int, copies: int) -> None:
    """Some copies of the weights a player, in float32, must fit into memory beside the training.

    Raises:
        InputError: they do not.
    """
    if base.device.type != "cpu":  # whose memory is asked for as it is used, and refused by a sentence
        return
    needed = 4 * (copies * n_players + 6) * sum(weight.numel() for weight in base.model.parameters())
    free = base.free_memory
    if needed > free:
        raise InputError(
            f"the game {LedgerGame.name}: books of {n_players:,} sources need about {needed / 1e9:.0f} GB of memory, "
            f"and {free / 1e9:.0f} GB are free: value coarser sources ({setting('sources.by')})"
        )
