"""What is said of documents that a model was not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from dataworth.storage.coalitions import CoalitionStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.layers import LayerStore
from dataworth.storage.ref import StoreRef
from dataworth.storage.schema import ALL_QUERIES
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.corpus.groups import document_groups
from dataworth.tasks.report.account import Account
from dataworth.tasks.training.candidates import GAINED

__all__ = ["CandidateParts", "Candidates", "candidates_said"]

NATS = ["value", "standard_error", "low", "high"]
COLUMNS = ["query_id", "source", *NATS, "n_documents", "n_tokens"]


class CandidateParts(BaseModel):
    """Stores of candidates.

    Args:
        corpus: their texts.
        scores: theirs for every query.
        values: sums by source.
        trainings: of each checkpoint on each source alone; empty where there were none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: StoreRef
    scores: StoreRef
    values: StoreRef
    trainings: tuple[StoreRef, ...] = ()


@dataclass(frozen=True)
class Candidates:
    """What the queries would gain from documents that the model was not trained on.

    Args:
        table: a row a query and source, "*" all queries together, the largest first: `value`, `standard_error`,
            `low`, `high` (nats of a query, or of all added up), `n_documents`, `n_tokens`, `n_known` (documents whose
            text is in the corpus, too), `nats_per_query`, `nats_per_1000_tokens` (of a query, in the mean), `measured`
            (nats that training on it alone took off, as `value`; NaN where nothing was trained), `measured_per_query`.
        documents: rows of PASSAGES, best and worst of each query.
        epochs: of those trainings; 0: none.
    """

    table: pd.DataFrame
    documents: pd.DataFrame
    epochs: int = 0

    @property
    def sources(self) -> list[dict[str, Any]]:
        """Rows of all queries together."""
        rows = self.table[self.table["query_id"] == ALL_QUERIES].to_dict("records")
        return [{str(key): None if value != value else value for key, value in row.items()} for row in rows]

    @property
    def best(self) -> list[dict[str, Any]]:
        """The best passages for all queries together."""
        of_all = self.documents[(self.documents["query_id"] == ALL_QUERIES) & (self.documents["rank"] > 0)]
        return [{str(key): value for key, value in row.items()} for row in of_all.to_dict("records")]

    @property
    def n_known(self) -> int:
        """Documents whose text is in the corpus, too."""
        return sum(int(row["n_known"]) for row in self.sources)


def candidates_said(parts: CandidateParts, corpus: StoreRef, account: Account) -> Candidates:
    """Read what was made of candidates; where the sources' values are scaled, so are theirs, to compare with them.

    Args:
        parts: their stores.
        corpus: of the training.
        account: the unit of scores, and of how many queries they are.
    """
    found = CoalitionStore.open(parts.values).values.to_pandas()
    own = found[found["level"] == found["level"].max()].copy()
    own[NATS] *= account.scaled_by or 1.0
    documents = CorpusStore.open(parts.corpus)
    is_known = np.isin(documents.contents, CorpusStore.open(corpus).contents)
    groups = pd.Series(document_groups(documents, str(own["grouping"].iloc[0])))
    n_known = groups[is_known].value_counts()
    n_queries = np.where(own["query_id"] == ALL_QUERIES, account.n_queries, 1)
    per_query = own["value"] / n_queries if account.scores_in_nats else own["value"] * float("nan")
    table = own[COLUMNS].assign(
        n_known=own["source"].map(n_known).fillna(0).astype(int),
        nats_per_query=per_query,
        nats_per_1000_tokens=1000 * per_query / own["n_tokens"],
    )
    measured = _measured(table, parts.trainings)
    table = table.assign(measured=measured, measured_per_query=measured / n_queries)
    told = table["measured"] if parts.trainings else table["value"]
    order = np.lexsort((-told.to_numpy(), pd.factorize(table["query_id"])[0]))
    passages = ScoreStore.open(parts.scores).passages.to_pandas()
    epochs = LayerStore.open(parts.trainings[0]).attributes["training"]["epochs"] if parts.trainings else 0
    return Candidates(table.iloc[order].reset_index(drop=True), passages, epochs)


def _measured(table: pd.DataFrame, trainings: Sequence[StoreRef]) -> np.ndarray:
    """(rows,) nats that training on each source took off each query, the mean over the checkpoints; NaN without."""
    if not trainings:
        return np.full(len(table), np.nan)
    opened = [LayerStore.open(each) for each in trainings]
    gained = np.mean([each.matrix(GAINED, GAINED) for each in opened], axis=0)
    by_query = np.column_stack([gained, gained.sum(axis=1)])  # the last stands for all queries
    rows = {name: number for number, name in enumerate(opened[0].attributes["names"])}
    columns = {name: number for number, name in enumerate(table["query_id"].drop_duplicates())}
    found: np.ndarray = by_query[table["source"].map(rows), table["query_id"].map(columns)]
    return found
