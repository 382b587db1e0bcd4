"""What a finished run says to a person: its tables, and where everything is."""

from pathlib import Path
from typing import Any

from dataworth.command.terminal import mlflow_place, say, table
from dataworth.tasks.report.account import Account
from dataworth.tasks.report.numbers import interval, number, percent

__all__ = ["candidates_table", "say_audit", "say_valuation", "sources_table"]

# A screenful of sources.
MOST_ROWS = 20


def say_valuation(valuation: dict[str, Any]) -> None:
    """The sources' table and where everything is."""
    from dataworth.tasks.report.results.folder import read_account, read_candidates, read_sources
    from dataworth.tasks.report.results.summary import level_title

    account, values = read_account(valuation["results"]), read_sources(valuation["results"])
    say("\n".join(account.sentences()))
    say()
    for key, rows in values[values["query_id"] == "*"].groupby(["grouping", "level"], sort=False):
        shown = rows.sort_values("value", ascending=False, kind="stable")[:MOST_ROWS]
        say(sources_table(shown, account, level_title(*key)))
        if len(rows) > len(shown):
            say(f"and {len(rows) - len(shown):,} more in {valuation['results']}/sources.csv")
        say()
    candidates = read_candidates(valuation["results"])
    if candidates is not None:
        say("Not trained on: what the loss of a query would lose, were these sources added")
        say()
        n_candidates = int((candidates["query_id"] == "*").sum())
        say(candidates_table(candidates[candidates["query_id"] == "*"][:MOST_ROWS], account))
        if n_candidates > MOST_ROWS:
            say(f"and {n_candidates - MOST_ROWS:,} more in {valuation['results']}/candidates.parquet")
        say()
    say(f"report   {valuation['results']}/report.html")
    say(f"MLflow   {mlflow_place(valuation['mlflow_url'], valuation['mlflow_run_id'])}")


def say_audit(audited: dict[str, Any]) -> None:
    """The methods' table, what it comes to, and where everything is."""
    from dataworth.tasks.report.page.audit import audit_table, read_audit

    audit = read_audit(Path(audited["results"]))
    say(table(*audit_table(audit)))
    say()
    say("\n".join(audit.sentences()))
    say()
    say(f"report   {audited['results']}/report.html")
    if audit.tuned is not None:
        say(f"tuned    dataworth value --config {audited['results']}/tuned.yaml …")
    say(f"MLflow   {mlflow_place(audited['mlflow_url'], audited['mlflow_run_id'])}")


def sources_table(values: Any, account: Account, title: str = "source") -> str:
    """Sources by value, for the terminal.

    Args:
        values: rows of VALUES of all queries together.
        account: their unit.
        title: of the first column.
    """
    rows = [
        [
            row.source,
            percent(account.part_of(row.value, row.share)),
            number(account.per_query(row.value)),
            interval(account.per_query(row.low), account.per_query(row.high)),
            f"{row.n_documents:,}",
            f"{row.n_tokens:,}",
        ]
        for row in values.sort_values("value", ascending=False, kind="stable").itertuples()
    ]
    return table([title, account.part, account.unit, "interval", "documents", "tokens"], rows)


def candidates_table(candidates: Any, account: Account) -> str:
    """Candidates by what they would add, for the terminal.

    Args:
        candidates: rows of `candidates.parquet`.
        account: their unit.
    """
    of_all = candidates[candidates["query_id"] == "*"]
    is_measured = bool(of_all["measured"].notna().any())
    rows = [
        [
            row.source,
            *([number(row.measured / account.n_queries)] if is_measured else []),
            number(row.value / account.n_queries),
            interval(account.per_query(row.low), account.per_query(row.high)),
            f"{row.n_documents:,}",
            f"{row.n_known:,}",
            f"{row.n_tokens:,}",
        ]
        for row in of_all.itertuples()
    ]
    told = [*(["measured"] if is_measured else []), f"predicted, {account.unit_of_scores}"]
    return table(["candidate", *told, "interval", "documents", "known", "tokens"], rows)
