"""What a scoring pass over the stores of one checkpoint is made of, read and made ready."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.layer_table import Layer
from dataworth.storage.ref import StoreRef
from dataworth.storage.spelling import setting
from dataworth.tasks.corpus.groups import document_groups
from dataworth.tasks.curvature.config import DampingConfig
from dataworth.tasks.curvature.precondition import Inverses
from dataworth.tasks.curvature.stored import damped_inverses
from dataworth.tasks.scoring.blocks import Preconditioned
from dataworth.tasks.scoring.config import ScoringConfig
from dataworth.tasks.scoring.players import Players, chosen_sources, players
from dataworth.tasks.scoring.queries import chosen_inverses, chosen_layers, preconditioned
from dataworth.tasks.scoring.tally import Tally

__all__ = ["Pass", "ReadyPass", "counted_layers", "ready_players"]


class Pass(BaseModel):
    """The stores of one checkpoint that a scoring pass reads, and what it left.

    Args:
        gradients, query_gradients: of documents and queries.
        curvature: None for `none`.
        scores: of the pass, with the matrix of all of them.
        weight: in a mean of several.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gradients: StoreRef
    query_gradients: StoreRef
    curvature: StoreRef | None
    scores: StoreRef
    weight: float = Field(1.0, gt=0)


@dataclass(frozen=True)
class ReadyPass:
    """A pass made ready.

    Args:
        corpus, gradients: the stores.
        players: who is scored, and valued for it.
        layers: that count.
        queries: preconditioned, their sum as the last row.
        inverses: of those layers, for scores relative to self-influence.
        divided_by: what the queries were divided by.
    """

    corpus: CorpusStore
    gradients: GradientStore
    players: Players
    layers: Sequence[Layer]
    queries: Preconditioned
    inverses: Inverses
    divided_by: int = 1

    @classmethod
    def of(
        cls,
        corpus: CorpusStore,
        players: Players,
        gradients: StoreRef,
        queries: CorpusStore,
        query_gradients: StoreRef,
        curvature: StoreRef | None,
        damping: DampingConfig,
        scoring: ScoringConfig,
        trained: StoreRef | None = None,
    ) -> "ReadyPass":
        """Read what a pass needs.

        Args:
            corpus: whose documents are scored.
            players, gradients, queries, query_gradients, curvature, damping, scoring: of the pass.
            trained: the corpus the model was trained on, one of whose windows a score is in nats of; None: the same.

        Raises:
            InputError: the curvature of a layer is zero under relative damping, or no layer matches a pattern.
        """
        store = GradientStore.open(gradients)
        layers = counted_layers(store, scoring)
        if store.along is None:
            inverses = chosen_inverses(layers, damped_inverses(curvature, damping))
            rows = np.concatenate(GradientStore.open(query_gradients).rows_of(queries.contents))
        else:  # rows are multiplied with the preconditioned queries already, in their order
            if store.along != queries.fingerprint:
                raise ValueError(f"{store.path} holds scores for other queries")
            inverses, rows = chosen_inverses(layers, {}), np.eye(queries.n_examples, dtype=np.float32)
        of_training = corpus if trained is None else CorpusStore.open(trained)
        share = 1 if curvature is None else of_training.n_examples
        ready = preconditioned(rows, inverses, scoring.kind, share)
        return cls(corpus, store, players, layers, ready, inverses, share if scoring.kind == "dot" else 1)

    def rows_of_kept(self, tally: Tally) -> dict[int, np.ndarray]:
        """Document number → (n_windows, n_columns) gradients of every document among the best or the worst."""
        numbers = np.unique(np.concatenate([tally.top.documents, tally.bottom.documents], axis=None))
        numbers = numbers[numbers >= 0]
        rows = self.gradients.rows_of(self.corpus.contents[self.players.rows[numbers]])
        return dict(zip(numbers.tolist(), rows, strict=True))


def ready_players(corpus: CorpusStore, scoring: ScoringConfig, grouping: str) -> Players:
    """Who is scored, grouped.

    Raises:
        InputError: a pattern matches no source, or the corpus keeps no such field to group by.
    """
    sources = corpus.column("source").to_pylist()
    try:
        kept = chosen_sources(sorted(set(sources)), scoring.sources, scoring.without_sources)
    except ValueError as error:
        raise InputError(f"{setting('scoring.sources')}: {error}") from None
    chosen = np.fromiter((source in kept for source in sources), bool, len(sources))
    ids, n_tokens = corpus.column("document_id").to_pylist(), corpus.column("n_tokens").to_numpy()
    return players(ids, document_groups(corpus, grouping), n_tokens, chosen)


def counted_layers(gradients: GradientStore, scoring: ScoringConfig) -> list[Layer]:
    """The layers that count.

    Raises:
        InputError: a pattern matches no layer.
    """
    try:
        return chosen_layers(gradients.layers, scoring.layers)
    except ValueError as error:
        raise InputError(f"{setting('scoring.layers')}: {error}") from None
