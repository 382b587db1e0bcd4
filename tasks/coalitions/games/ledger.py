"""Every step's fall of the queries' loss, divided among those whose documents made it (tasks/training/ledger.py)."""

from collections.abc import Callable

import numpy as np

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.games.one_training import Credited, OneTraining, Trained, too_much_missed
from dataworth.tasks.coalitions.games.source_game import Material
from dataworth.tasks.model.loading import LoadedModel
from dataworth.tasks.progress import run_logger
from dataworth.tasks.training.checkpoint_ledger import ledger_of_checkpoints
from dataworth.tasks.training.training_with_ledger import ledger_of

__all__ = ["LedgerGame"]

# Checkpoints between base and model: on the bench (infra/docs/truth.md) one leaves a share error of 0.16 of all
# questions together on the corpus it was chosen on and 0.14 on the other, three leave 0.11 and 0.07.
FEW = 3


class LedgerGame(OneTraining):
    """By one training, step by step."""

    name = "ledger"

    def divided(self, trained: Trained, material: Material, on_step: Callable[[int, int], None]) -> Credited:
        """Train once; where there are checkpoints of the training, not at all."""
        base, n_players = trained.base, len(trained.names)
        if material.sources.checkpoints:
            _refuse_too_large(base, n_players + 14)
            return _on_the_way(trained, material, on_step)
        _refuse_too_large(base, 3 * n_players + 6)
        ledger = ledger_of(
            base, trained.corpus, trained.windows, trained.players, n_players, trained.queries, trained.training,
            material.sources.ledger_every, on_step,
        )  # fmt: skip
        facts = {
            "estimator": "one training, step by step",
            "credited to weight decay": float(ledger.decay.sum()),
            "missed by the ledger": ledger.missed,
        }
        remedy = (
            f"as steps are long or weights of few digits: lower {setting('sources.ledger_every')}, or pass "
            f"{setting('model.dtype')} float32"
        )
        reason = too_much_missed(ledger.missed, remedy)
        return Credited(ledger.values.T, ledger.measured[0], ledger.measured[-1], facts, reason)


def _on_the_way(trained: Trained, material: Material, on_step: Callable[[int, int], None]) -> Credited:
    """By the checkpoints of the training, which is not carried out; what they tell is scaled to what was measured."""
    model = material.needed.model
    between = [model.model_copy(update={"name": name}) for name in material.sources.checkpoints]
    ledger = ledger_of_checkpoints(
        [*between, model], trained.corpus, trained.windows, trained.players, len(trained.names), trained.queries,
        trained.training, on_step,
    )  # fmt: skip
    taken, told = float(ledger.fall.sum()), float(ledger.values.sum())
    facts = {"estimator": f"the way through {len(between)} checkpoints", "missed half-way": ledger.missed}
    if len(between) < FEW:
        run_logger().warning(
            "%s: the way through %s is told less surely than through %s or more",
            setting("sources.checkpoints"), len(between), FEW,
        )  # fmt: skip
    # Of values that cancel each other, what is left over would be scaled.
    if taken <= 0 or told <= np.abs(ledger.values.sum(axis=1)).sum() / 2:
        reason = "what the ways between the checkpoints tell of the sources cancels out"
        if taken <= 0:
            reason = "training took nothing off the queries that could be shared"
        return Credited(ledger.values.T, ledger.measured[0], ledger.measured[-1], facts, reason)
    facts["scaled by"] = taken / told
    return Credited(ledger.values.T * (taken / told), ledger.measured[0], ledger.measured[-1], facts)


def _refuse_too_large(base: LoadedModel, copies: int) -> None:
    """So many copies of the weights, in float32, must fit into memory beside the model.

    Raises:
        InputError: they do not.
    """
    if base.device.type != "cpu":  # whose memory is asked for as it is used, and refused by a sentence
        return
    needed = 4 * copies * sum(weight.numel() for weight in base.model.parameters())
    free = base.free_memory
    if needed > free:
        raise InputError(
            f"the game {LedgerGame.name}: books of the sources need about {needed / 1e9:.0f} GB of memory, "
            f"and {free / 1e9:.0f} GB are free: value coarser sources ({setting('sources.by')})"
        )
