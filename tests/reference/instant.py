"""A problem of an audit whose trainings take no time: losses tell who took part."""

from dataclasses import dataclass

import numpy as np

from tests.reference.in_memory import small_classifier, table

__all__ = ["Instant", "instant"]

N, Q = 12, 4


@dataclass(frozen=True)
class Instant:
    """As `Problem` of dataworth.tasks.counterfactual.problem."""

    title: str = "instant"
    fingerprint: str = "instant"
    contents: str = ""
    weight_decay: float | None = None
    texts: None = None

    @property
    def examples(self):
        return table(N, 1)

    @property
    def queries(self):
        return table(Q, 2)

    @property
    def sources(self):
        return ["one"] * 4 + ["two"] * 8

    def models(self):
        return [small_classifier()]

    def losses_after(self, members, seed):
        return np.arange(Q) + members @ np.sqrt(np.arange(N)) / 100 + 0.001 * seed


def instant():
    """For `--audit.problem`."""
    return Instant()
