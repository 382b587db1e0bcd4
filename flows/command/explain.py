"""Why a document has its value, in plain words, from what a valuation left in its results folder."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from dataworth.command.terminal import table
from dataworth.storage.errors import InputError
from dataworth.storage.schema import ALL_QUERIES
from dataworth.tasks.report.account import Account
from dataworth.tasks.report.numbers import number, percent
from dataworth.tasks.report.results.folder import Results, read_results, read_tokens, whole_values
from dataworth.tasks.visible import visible

__all__ = ["explained"]

WIDTH = 100
MOST_QUERIES, MOST_WORDS, MOST_NEIGHBOURS = 10, 5, 5


def explained(folder: Path, document: str) -> str:
    """What a valuation says of a document.

    Args:
        folder: of the results.
        document: its id.

    Raises:
        InputError: the valuation kept nothing of it.
    """
    results = read_results(str(folder))
    account = Account.read(results.record)
    every = _scores(results, document, folder)
    own = results.documents[results.documents["document_id"] == document]
    if every.empty:
        raise InputError(
            f"--document {document}: among the best of no query, and other scores were not kept: value again with "
            "--scoring.save_matrix, or with a larger --scoring.top_k"
        )
    source = str(own["source"].iloc[0]) if len(own) else None
    parts = [
        _first(document, source, own),
        _of_queries(every, account, results, source),
        *_words(folder, document),
        *_neighbours(results, own),
        *_without(every, results, account, source),
    ]
    return "\n\n".join(parts)


def _scores(results: Results, document: str, folder: Path) -> pd.DataFrame:
    """`query_id`, `score`, `rank` (missing where it is not among the best) of every query that is known."""
    own = results.documents[results.documents["document_id"] == document]
    kept = own[["query_id", "score", "rank"]].set_index("query_id")
    path = folder / "scores.zarr"
    if path.is_dir():
        import zarr

        from dataworth.storage.zarr_arrays import array_at

        group = zarr.open_group(path, mode="r")
        ids, queries = (np.asarray(array_at(group, name)[...]).tolist() for name in ("document_id", "query_id"))
        if document in ids:
            column = np.asarray(array_at(group, "scores")[:, ids.index(document)], np.float64)[: len(queries)]
            every = pd.DataFrame({"score": column}, index=pd.Index(queries, name="query_id"))
            if ALL_QUERIES not in every.index:
                every.loc[ALL_QUERIES, "score"] = column.sum()
            kept = every.join(kept["rank"])
    return kept.reset_index().sort_values("score", ascending=False, ignore_index=True)


def _first(document: str, source: str | None, own: pd.DataFrame) -> str:
    if source is None:
        return f"{document}: among the best of no query."
    text = textwrap.shorten(visible(" ".join(str(own["text"].iloc[0]).split())), 2 * WIDTH, placeholder=" …")
    said = textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return f"{visible(document)}, of {visible(source)}. The passage of it that tells most:\n{said}"


def _of_queries(every: pd.DataFrame, account: Account, results: Results, source: str | None) -> str:
    whole = every[every["query_id"] == ALL_QUERIES]
    single = every[every["query_id"] != ALL_QUERIES]
    lines = []
    if len(whole):
        score, rank = float(whole["score"].iloc[0]) / account.n_queries, whole["rank"].iloc[0]
        place = f", rank {rank:,.0f} of all documents" if rank == rank else ""
        if account.scores_in_nats:
            verb, way = ("took", "off") if score > 0 else ("added", "to")
            off = f"{number(abs(score))} nats a query {way} the loss of all queries together"
            lines.append(f"By its score it {verb} {off}{place}.")
        else:
            lines.append(f"Its score of all queries together is {number(score)} a query, without a unit{place}.")
    values = results.sources[results.sources["level"] == results.sources["level"].max()]
    of_source = values[values["source"] == source].drop_duplicates("query_id").set_index("query_id")["value"]
    rows = []
    for row in single.head(MOST_QUERIES).itertuples():
        due = float(of_source.get(row.query_id, float("nan")))
        part = percent(row.score / due) if due > 0 and results.sources["game"].iloc[0] == "additive" else ""
        rows.append([row.query_id, f"{row.rank:.0f}" if row.rank == row.rank else "", number(row.score), part])
    if rows:
        heading = ["query", "rank", "nats" if account.scores_in_nats else "score", "of its source's"]
        lines.append(table(heading, rows))
        if len(single) > len(rows):
            lines.append(f"and {len(single) - len(rows):,} more")
    return "\n".join(lines)


def _words(folder: Path, document: str) -> Iterator[str]:
    """Of the queries of which it is told, the tokens that gave and took most."""
    told = read_tokens(str(folder))
    if told is None:
        return
    lines = []
    for query, own in told[told["document_id"] == document].groupby("query_id", sort=False):
        passage, answer = (_largest(own[own["side"] == side]) for side in ("passage", "answer"))
        of_answer = f", of what was said {answer}" if answer else ""
        name = "all together" if query == ALL_QUERIES else visible(str(query))
        lines.append(f"  {name}: {passage}{of_answer}")
    if lines:
        yield "\n".join(["By these tokens most:", *lines])


def _largest(tokens: pd.DataFrame) -> str:
    chosen = tokens[(tokens["score"] > 0) & (tokens["text"].str.strip() != "")].nlargest(MOST_WORDS, "score")
    return ", ".join(
        f"{visible(text)!r} {number(score)}" for text, score in zip(chosen["text"], chosen["score"], strict=True)
    )


def _neighbours(results: Results, own: pd.DataFrame) -> Iterator[str]:
    """Who has the same passage, and who stands beside it for most of its queries."""
    rows, document = results.documents, own["document_id"].iloc[0] if len(own) else None
    others = rows[rows["document_id"] != document]
    same = others[others["text"].isin(own["text"])].drop_duplicates("document_id")
    if len(same):
        named = [f"{row.document_id} ({row.source})" for row in same.head(MOST_NEIGHBOURS).itertuples()]
        more = f" and {len(same) - len(named):,} more" if len(same) > len(named) else ""
        yield visible(f"The same passage is in {', '.join(named)}{more}: without it they would still teach it.")
    beside = others[others["query_id"].isin(own["query_id"]) & ~others["document_id"].isin(same["document_id"])]
    counts = beside.groupby(["document_id", "source"]).size().nlargest(MOST_NEIGHBOURS)
    if len(counts):
        named = [f"{name} ({source})" for name, source in counts.index]
        yield visible(f"Beside it among the best of the same queries: {', '.join(named)}.")


def _without(every: pd.DataFrame, results: Results, account: Account, source: str | None) -> Iterator[str]:
    """The source's value and place without the document, in the additive game."""
    values = whole_values(results.sources)
    score = every.loc[every["query_id"] == ALL_QUERIES, "score"]
    if source is None or score.empty or source not in set(values["source"]) or values["game"].iloc[0] != "additive":
        return
    lost = float(score.iloc[0]) * (account.scaled_by or 1.0)
    before = values.set_index("source")["value"].astype(float)
    after = before.copy()
    after[source] -= lost
    shares = [(each.clip(lower=0) / max(each.clip(lower=0).sum(), 1e-300))[source] for each in (before, after)]
    places = [int((each > each[source]).sum()) + 1 for each in (before, after)]
    n = account.n_queries
    yield (
        f"Without it {visible(source)} would be worth {number(after[source] / n)} instead of "
        f"{number(before[source] / n)} {account.unit}, {percent(shares[1])} instead of {percent(shares[0])} of the "
        f"positive values, and stand at place {places[1]} instead of {places[0]} of {len(before)}: to first order, "
        "everything else as it is."
    )
