"""Tables and names in Markdown, for Prefect's artifacts and MLflow's descriptions."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from dataworth.tasks.report.account import Account
from dataworth.tasks.report.numbers import interval, number, percent
from dataworth.tasks.visible import visible

__all__ = ["inert", "markdown_candidates", "markdown_sources", "markdown_table"]

# 25 rows of a table must fit into the 8,000 characters of an MLflow description.
MAX_CELL_CHARACTERS = 160

ENTITIES = {"&": "&amp;", "<": "&lt;"}


def inert(text: str, most: int | None = None) -> str:
    """Text that Markdown shows as it is, on one line and in one cell of a table.

    Args:
        text: whatever it holds.
        most: characters of the result; a longer one is cut.
    """
    escaped = [_escaped(letter) for letter in " ".join(visible(text).split())]
    if most is not None and sum(map(len, escaped)) > most:
        ends = list(accumulate(map(len, escaped)))
        escaped = [*escaped[: bisect_right(ends, most - 1)], "…"]
    return "".join(escaped)


def _escaped(letter: str) -> str:
    if letter in ENTITIES:
        return ENTITIES[letter]
    return f"\\{letter}" if letter in "\\`*_{}[]()#+-.!|~>:@$" else letter


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: texts that are no names of anybody's; the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_sources(sources: list[dict[str, Any]], account: Account, most: int) -> str:
    """What the numbers are, and the sources' table: source, share, value with its interval, documents, tokens.

    Args:
        sources: rows of VALUES of all queries together, largest value first.
        account: their unit and total.
        most: rows that are shown; a last line counts the others.
    """
    rows = [
        [
            inert(row["source"], MAX_CELL_CHARACTERS),
            percent(account.part_of(row["value"], row["share"])),
            number(account.per_query(row["value"])),
            interval(account.per_query(row["low"]), account.per_query(row["high"])),
            f"{row['n_documents']:,}",
            f"{row['n_tokens']:,}",
        ]
        for row in sources[:most]
    ]
    header = ["source", account.part, account.unit, "interval", "documents", "tokens"]
    table = f"{' '.join(map(inert, account.sentences()))}\n\n{markdown_table(header, rows)}"
    return table if len(sources) <= most else f"{table}\n\nand {len(sources) - most:,} more in sources.csv"


def markdown_candidates(candidates: list[dict[str, Any]], account: Account, most: int) -> str:
    """What the queries would gain from sources that were not trained on; empty without any.

    Args:
        candidates: rows of `candidates.parquet` of all queries together, largest value first, NaN as None.
        account: their unit.
        most: rows that are shown; a last line counts the others.
    """
    if not candidates:
        return ""
    is_measured = any(row["measured"] is not None for row in candidates)
    rows = [
        [
            inert(row["source"], MAX_CELL_CHARACTERS),
            *([number(account.per_query(row["measured"]))] if is_measured else []),
            number(account.per_query(row["value"])),
            interval(account.per_query(row["low"]), account.per_query(row["high"])),
            f"{row['n_documents']:,}",
            f"{row['n_tokens']:,}",
        ]
        for row in candidates[:most]
    ]
    told = [*(["measured"] if is_measured else []), f"predicted, {account.unit_of_scores}"]
    table = markdown_table(["not trained on", *told, "interval", "documents", "tokens"], rows)
    said = "What the loss of a query would lose, were these sources added:"
    more = f"\n\nand {len(candidates) - most:,} more in candidates.parquet" if len(candidates) > most else ""
    return f"{said}\n\n{table}{more}"
