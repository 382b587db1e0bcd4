"""The model's loss of each query, as it was measured while the query's gradient was taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.gradients import GradientStore
from dataworth.storage.schema import NO_CLASS
from dataworth.tasks.corpus.batches import window_targets

__all__ = ["QueryLoss", "mean_losses", "query_losses"]


@dataclass(frozen=True)
class QueryLoss:
    """Loss of a query's completion.

    Args:
        total: nats, summed over the targets.
        n_targets: tokens of the completion whose loss is taken; 1 for a class.
        of_class: the target is a class, not tokens.
    """

    total: float
    n_targets: int
    of_class: bool

    @property
    def per_target(self) -> float:
        """Nats per token, or of the class."""
        return self.total / self.n_targets if self.n_targets else float("nan")


def query_losses(queries: CorpusStore, gradients: GradientStore) -> dict[str, QueryLoss]:
    """Query id → its loss.

    Args:
        queries: as tokenised.
        gradients: of the queries; its column `loss` is in nats, summed over the targets of a window.

    Raises:
        StoreIncompleteError: the gradients are of other queries.
    """
    windows, first = queries.windows, queries.first_windows
    of_class = windows["label"] != NO_CLASS
    targets = window_targets(queries)
    ids, columns = queries.column("document_id").to_pylist(), gradients.column_of("loss", queries.contents)
    ranges = [slice(start, end) for start, end in pairwise(first.tolist())]
    return {
        query_id: QueryLoss(
            total=float(losses.sum(dtype=np.float64)),
            n_targets=int(targets[own].sum()),
            of_class=bool(of_class[own].any()),
        )
        for query_id, losses, own in zip(ids, columns, ranges, strict=True)
    }


def mean_losses(checkpoints: Sequence[Mapping[str, QueryLoss]]) -> dict[str, QueryLoss]:
    """Query id → its mean loss.

    Args:
        checkpoints: losses of the same queries by each of them, at least one.
    """
    return {
        query_id: replace(loss, total=float(np.mean([each[query_id].total for each in checkpoints])))
        for query_id, loss in checkpoints[0].items()
    }
