"""What a valuation says, gathered from its stores: the content of the report and of MLflow's tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.schema import ALL_QUERIES
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.counterfactual.certificate import Certificate
from dataworth.tasks.report.account import OLD, Account
from dataworth.tasks.report.results.candidates import Candidates
from dataworth.tasks.report.results.query_losses import QueryLoss
from dataworth.tasks.report.results.tokens import Told

__all__ = ["MOST_SOURCES", "QuerySummary", "Summary", "level_title", "strongest_overlaps", "summary"]


# Of one query, that are gathered; of all queries together all are.
MOST_SOURCES = 20


@dataclass(frozen=True)
class QuerySummary:
    """One query and what explains it.

    Args:
        id, prompt, completion: as asked, or as the model completed it.
        most, least: passages, rows of PASSAGES, best first.
        sources: rows of VALUES, largest value first, no more than MOST_SOURCES.
        loss: of the completion; None where it is not known.
    """

    id: str
    prompt: str
    completion: str
    most: list[dict[str, Any]]
    least: list[dict[str, Any]]
    sources: list[dict[str, Any]]
    loss: QueryLoss | None = None


@dataclass(frozen=True)
class Summary:
    """A valuation as a person reads it.

    Args:
        queries: one a query.
        sources: values for all queries together, largest first, of the first grouping's finest level.
        most, least: passages for all queries together.
        facts: label → value, how large the corpus is and how the run was made.
        clipped: negative values that count as zero in shares, over the positive total of all queries together; None
            where it is not known.
        groups: the same as `sources` of every other level and grouping, by a title.
        notes: what was written beside the values.
        overlaps: rows of OVERLAP, strongest first; None where the game does not tell.
        command: that makes the valuation again; empty where it is not known.
        account: what the numbers are: their unit and their total.
        certificate: predicted removals beside measured ones, where some were asked for.
        candidates: documents that the model was not trained on, where some were given.
        told: which tokens taught, by query ("*": all together) and document, of some of the best passages.
    """

    queries: list[QuerySummary]
    sources: list[dict[str, Any]]
    most: list[dict[str, Any]]
    least: list[dict[str, Any]]
    facts: dict[str, str] = field(default_factory=dict)
    clipped: float | None = None
    groups: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    overlaps: list[dict[str, Any]] | None = None
    command: str = ""
    account: Account = field(default_factory=lambda: Account(OLD, 1))
    certificate: Certificate | None = None
    candidates: Candidates | None = None
    told: Mapping[tuple[str, str], Told] = field(default_factory=dict)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(key): None if value is None or value != value else value for key, value in row.items()}
        for row in table.to_dict("records")
    ]


def summary(
    queries: CorpusStore,
    scores: ScoreStore,
    values: pd.DataFrame,
    facts: dict[str, str],
    losses: Mapping[str, QueryLoss],
) -> Summary:
    """Gather what a valuation's stores hold.

    Args:
        queries: their texts.
        scores: their passages.
        values: rows of VALUES with `payout` and `clipped`; the first row's grouping and level are those of the sources.
        facts: how the run was made.
        losses: by query id, where they are known.
    """
    passages = scores.passages.to_pandas()
    tables = dict(iter(values.groupby(["grouping", "level"], sort=False)))
    ordered = {key: rows.sort_values("value", ascending=False, kind="stable") for key, rows in tables.items()}
    first, *others = ordered
    whole = _records(ordered[first][ordered[first]["query_id"] == ALL_QUERIES])

    by_query = dict(iter(passages.groupby("query_id")))
    largest = ordered[first].groupby("query_id", sort=False).head(MOST_SOURCES)
    sources_of = dict(iter(largest.groupby("query_id")))

    def most(query_id: str) -> list[dict[str, Any]]:
        found = by_query.get(query_id, passages[:0])
        return _records(found[found["rank"] > 0])

    def least(query_id: str) -> list[dict[str, Any]]:
        found = by_query.get(query_id, passages[:0])
        return _records(found[found["rank"] < 0])

    def sources(query_id: str) -> list[dict[str, Any]]:
        return _records(sources_of.get(query_id, largest[:0]))

    return Summary(
        queries=[
            QuerySummary(
                id=row["document_id"],
                prompt=row["text"][: row["n_prompt_characters"]],
                completion=row["text"][row["n_prompt_characters"] :],
                most=most(row["document_id"]),
                least=least(row["document_id"]),
                sources=sources(row["document_id"]),
                loss=losses.get(row["document_id"]),
            )
            for row in queries.documents()
        ],
        sources=whole,
        most=most(ALL_QUERIES),
        least=least(ALL_QUERIES),
        facts=facts,
        clipped=whole[0]["clipped"],
        groups={level_title(*key): _records(ordered[key][ordered[key]["query_id"] == ALL_QUERIES]) for key in others},
    )


def strongest_overlaps(overlap: pd.DataFrame, sources: Sequence[str], most: int) -> list[dict[str, Any]]:
    """The pairs of sources with the largest overlap in size.

    Args:
        overlap: rows of OVERLAP.
        sources: names that are published; pairs with others are left out.
        most: pairs that are kept.
    """
    known = overlap[overlap["source"].isin(sources) & overlap["other"].isin(sources)].dropna(subset="overlap")
    order = known["overlap"].abs().sort_values(ascending=False, kind="stable").index[:most]
    return _records(known.loc[order])


def level_title(grouping: str, level: int) -> str:
    """ "publisher > section" of the grouping "publisher>section" at level 2, "publisher" at level 1."""
    return " > ".join(grouping.split(">")[:level])
