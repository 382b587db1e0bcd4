"""The training made in ever larger doses of everybody, and what each added to them (see tasks/training/dose.py)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dataworth.tasks.coalitions.games.one_training import Credited, OneTraining, Trained, too_much_missed
from dataworth.tasks.coalitions.games.source_game import Material
from dataworth.tasks.corpus.examples import CorpusExamples
from dataworth.tasks.training.dose import doses
from dataworth.tasks.training.recipes import recipe_of

__all__ = ["DoseGame"]


class DoseGame(OneTraining):
    """By few trainings in part, gone through backwards: of sources, and of every document."""

    name = "dose"

    def divided(self, trained: Trained, material: Material, on_step: Callable[[int, int], None]) -> Credited:
        """Train in part, three times or seven, and in whole."""
        recipe = recipe_of(trained.base, trained.corpus, trained.training, trained.windows)
        found = doses(recipe, CorpusExamples(trained.queries), on_step=on_step)
        taken = found.values[:, trained.windows]
        values = np.zeros((len(taken), len(trained.names)))
        np.add.at(values.T, trained.players, taken.T)
        facts = {
            "estimator": f"{found.trainings} trainings in part, gone through backwards",
            "missed by the doses": found.missed,
        }
        documents = _rows(trained, taken.sum(axis=0)) if material.sources.document_values else None
        rough = "as the training is rough: a lower rate or more tokens a step make it smoother"
        return Credited(values, found.before, found.after, facts, too_much_missed(found.missed, rough), documents)


def _rows(trained: Trained, of_windows: np.ndarray) -> list[dict[str, Any]]:
    """Rows of DOCUMENT_VALUES (dataworth.storage.schema), most valuable first."""
    corpus = trained.corpus
    of_documents = corpus.windows["document"][trained.windows]
    numbers, places = np.unique(of_documents, return_inverse=True)
    values = np.bincount(places, of_windows)
    players = np.empty(len(numbers), np.int64)
    players[places] = trained.players
    ids = corpus.column("document_id").to_pylist()
    return [
        {"document_id": ids[numbers[place]], "source": trained.names[players[place]], "value": float(values[place])}
        for place in np.argsort(-values, kind="stable")
    ]
