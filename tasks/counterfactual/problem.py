"""What an audit is about: a model that was trained on documents, asked about queries, and that can be trained again.

With task.py, retraining.py and outcomes.py one of the modules of the room that know stores and models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.ref import StoreRef, fingerprint
from dataworth.storage.spelling import setting
from dataworth.tasks.corpus.examples import CorpusExamples, Examples
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.model.plain import Model
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.recipes import Recipe, recipe_of
from dataworth.tasks.training.retraining import losses_after_training

__all__ = ["CheckpointProblem", "NamedProblem", "Problem", "ProblemPlace", "ReplayableProblem"]


@runtime_checkable
class Problem(Protocol):
    """Implement this for a training of your own; `--audit.problem MODULE:FUNCTION` names a function that returns it."""

    @property
    def title(self) -> str:
        """In a few words."""

    @property
    def fingerprint(self) -> str:
        """Changes with anything that decides the outcome of a training; trainings are kept under it."""

    @property
    def contents(self) -> str:
        """Hash of the documents' contents, by which `compact` finds what was made of a corpus; empty without one."""

    @property
    def examples(self) -> Examples:
        """The training examples, each of a document."""

    @property
    def queries(self) -> Examples: ...

    @property
    def sources(self) -> Sequence[str]:
        """(n_documents,) who provided each document."""

    @property
    def texts(self) -> tuple[Sequence[str], Sequence[str]] | None:
        """Of the documents and of the queries; None where they have none."""

    @property
    def weight_decay(self) -> float | None:
        """Of the training, for the mean loss over examples: the natural damping; None where it has no such meaning."""

    def models(self) -> Sequence[Model]:
        """The models whose training is audited, trained on all documents."""

    def losses_after(self, members: Bool[np.ndarray, " n"], seed: int) -> Float[np.ndarray, " q"]:
        """(n_queries,) losses in nats after training on some of the documents."""


@runtime_checkable
class ReplayableProblem(Problem, Protocol):
    """A problem whose training can be gone through backwards, which the method `replay` does."""

    def recipe(self, seed: int) -> Recipe:
        """Of the training on all documents, as `losses_after` carries it out."""


class ProblemPlace(Protocol):
    """Where a problem is opened, on whatever machine a worker runs; small, and sent to it."""

    def opened(self) -> Problem: ...


@dataclass(frozen=True)
class CheckpointProblem:
    """Checkpoints, and the base that they are trained again from.

    Args:
        checkpoints: of one architecture and tokenizer; the base is that of the first.
        corpus: the documents.
        queries: one window each.
        training: how.
        title: in a few words.
    """

    checkpoints: tuple[ModelConfig, ...]
    corpus: StoreRef
    queries_ref: StoreRef
    training: TrainingConfig
    title: str

    def opened(self) -> "CheckpointProblem":
        """Itself: nothing is held in memory."""
        return self

    @property
    def contents(self) -> str:
        return CorpusStore.open(self.corpus).contents_fingerprint

    @property
    def fingerprint(self) -> str:
        base = load(self.checkpoints[0], 1.0)
        parts = {"retrained": 1, "base": base.fingerprint, "corpus": self.corpus.fingerprint}
        parts |= {"queries": self.queries_ref.fingerprint, "training": self.training.model_dump(exclude={"seed"})}
        return fingerprint(parts)

    @property
    def examples(self) -> Examples:
        return CorpusExamples(CorpusStore.open(self.corpus))

    @property
    def queries(self) -> Examples:
        return CorpusExamples(CorpusStore.open(self.queries_ref))

    @property
    def sources(self) -> Sequence[str]:
        names: list[str] = CorpusStore.open(self.corpus).column("source").to_pylist()
        return names

    @property
    def texts(self) -> tuple[Sequence[str], Sequence[str]] | None:
        documents, queries = (CorpusStore.open(ref).column("text") for ref in (self.corpus, self.queries_ref))
        return documents.to_pylist(), queries.to_pylist()

    @property
    def weight_decay(self) -> float | None:
        """None: AdamW's decay is of the steps, in no unit of the loss."""
        return None

    def models(self) -> Sequence[Model]:
        return [load(checkpoint) for checkpoint in self.checkpoints]

    def recipe(self, seed: int) -> Recipe:
        training = self.training.model_copy(update={"seed": seed})
        return recipe_of(load(self.checkpoints[0], 1.0), CorpusStore.open(self.corpus), training)

    def losses_after(self, members: Bool[np.ndarray, " n"], seed: int) -> Float[np.ndarray, " q"]:
        corpus = CorpusStore.open(self.corpus)
        windows = np.flatnonzero(np.asarray(members, bool)[corpus.windows["document"]])
        training = self.training.model_copy(update={"seed": seed})
        queries = CorpusStore.open(self.queries_ref)
        return losses_after_training(load(self.checkpoints[0], 1.0), corpus, windows, queries, training)


@dataclass(frozen=True)
class NamedProblem:
    """A problem that a function makes.

    Args:
        name: MODULE:FUNCTION.
    """

    name: str

    def opened(self) -> Problem:
        """What the function returns, once a process.

        Raises:
            InputError: there is no such function, or it returns no problem.
        """
        return _opened(self.name)


@lru_cache(maxsize=4)
def _opened(name: str) -> Problem:
    module, _, function = name.partition(":")
    try:
        made = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{setting('audit.problem')} {name}: cannot be found ({error})") from None
    problem = made()
    if not isinstance(problem, Problem):
        raise InputError(
            f"{setting('audit.problem')} {name}: returns a {type(problem).__name__}, which lacks parts of a Problem"
        )
    return problem
