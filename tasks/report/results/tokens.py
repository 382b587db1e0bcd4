"""Which tokens taught: parts of the scores of the best passages, as a person reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.layers import LayerStore
from dataworth.storage.ref import StoreRef
from dataworth.storage.schema import ALL_QUERIES
from dataworth.tasks.scoring.token_steps import PARTS

__all__ = ["Piece", "TokenParts", "Told", "tokens_table", "tokens_told"]

# A token and its part of a score.
Piece = tuple[str, float]


class TokenParts(BaseModel):
    """Parts of scores at one point.

    Args:
        parts: the store; see dataworth.tasks.scoring.token_steps.
        weight: of the point in a mean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: StoreRef
    weight: float = Field(1.0, gt=0)


@dataclass(frozen=True)
class Told:
    """A passage and a query, token by token; the parts of each side add up to what the passage gives to the score.

    Args:
        passage: what each token of it taught; last, under no text, what is of no token.
        answer: how much each token of the query was taught; of all queries together none.
    """

    passage: list[Piece]
    answer: list[Piece]

    @property
    def score(self) -> float:
        """Of the passage: its part of its document's score, all of it where the document has one window."""
        return sum(part for _, part in self.passage)


def tokens_told(points: Sequence[TokenParts], corpus: StoreRef, queries: StoreRef) -> dict[tuple[str, str], Told]:
    """By query ("*": all together) and document; the weighted mean over the points.

    Args:
        points: of all checkpoints.
        corpus, queries: that they are of.
    """
    if not points:
        return {}
    stores = [LayerStore.open(each.parts) for each in points]
    first = stores[0]
    weights = [each.weight for each in points]
    parts = np.average([store.matrix(PARTS, PARTS) for store in stores], axis=0, weights=weights)
    ids, asked = (CorpusStore.open(each).column("document_id") for each in (corpus, queries))
    texts, answers = first.attributes["pieces"], first.attributes["answers"]
    found: dict[tuple[str, str], Told] = {}
    end = 0
    for (row, document, window), lengths in zip(
        first.matrix(PARTS, "pair"), first.matrix(PARTS, "tokens"), strict=True
    ):
        passage, answer = (parts[end : end + lengths[0]], parts[end + lengths[0] : end + lengths.sum()])
        end += int(lengths.sum())
        query = asked[int(row)].as_py() if row < len(asked) else ALL_QUERIES
        found[query, ids[int(document)].as_py()] = Told(
            passage=list(zip([*texts[str(window)], ""], passage.tolist(), strict=True)),
            answer=list(zip(answers[str(row)], answer.tolist(), strict=True)) if len(answer) else [],
        )
    return found


def tokens_table(told: Mapping[tuple[str, str], Told]) -> pd.DataFrame:
    """The content of `tokens.parquet`: a row a token."""
    rows = [
        (query, document, side, place, text, score)
        for (query, document), each in told.items()
        for side, tokens in (("passage", each.passage), ("answer", each.answer))
        for place, (text, score) in enumerate(tokens)
    ]
    return pd.DataFrame(rows, columns=["query_id", "document_id", "side", "place", "text", "score"])
