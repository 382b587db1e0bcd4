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
    n_documents: int = N
    n_queries: int = Q

    def opened(self):
        return self

    @property
    def examples(self):
        return table(self.n_documents, 1)

    @property
    def queries(self):
        return table(self.n_queries, 2)

    @property
    def sources(self):
        return ["one"] * 4 + ["two"] * (self.n_documents - 4)

    def models(self):
        return [small_classifier()]

    def losses_after(self, members, seed):
        return np.arange(Q) + members @ np.sqrt(np.arange(N)) / 100 + 0.001 * seed


def instant():
    """For `--audit.problem`."""
    return Instant()
