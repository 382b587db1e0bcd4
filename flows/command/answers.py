"""Commands that ask a finished valuation, or two: nothing is computed from a model."""

import click

from dataworth.command.given import finished
from dataworth.command.imports import many_imports
from dataworth.command.terminal import passages, say
from dataworth.storage.errors import InputError

__all__ = ["ANSWERS"]

RESULTS = click.option("--results", required=True, metavar="DIR", help="Folder of a valuation.")


@click.command(help="The most valuable passages of one query of a valuation.")
@RESULTS
@click.option("--query", metavar="ID", default="*", show_default=True, help="Id of the query; * for all together.")
@click.option("--count", type=click.IntRange(1), default=5, show_default=True, help="How many passages.")
def top(results: str, query: str, count: int) -> None:
    """Print the head of `documents.parquet` for one query."""
    from dataworth.tasks.report.results.folder import read_documents

    rows = read_documents(str(finished(results)))
    of_query = rows[rows["query_id"] == query]
    if of_query.empty:
        known = ", ".join(rows["query_id"].drop_duplicates().head(8).to_list())
        raise InputError(f"--query {query}: not in this valuation, which has {known} …")
    say(passages(of_query.head(count).to_dict("records")))


@click.command(
    help="Why a document has its value: what it taught, by which words, who says the same, what would change."
)
@RESULTS
@click.option("--document", required=True, metavar="ID", help="Id of the document.")
def explain(results: str, document: str) -> None:
    """Print what a valuation says of one document."""
    folder = finished(results)
    from dataworth.command.explain import explained

    say(explained(folder, document))


@click.command("what-if", help="The shares had some sources been absent; what a source would gain by splitting itself.")
@RESULTS
@click.option("--without", multiple=True, metavar="SOURCE", help="Absent; several are absent together.")
@click.option("--split", multiple=True, metavar="SOURCE", help="Split in equal parts; several one after another.")
@click.option("--parts", type=click.IntRange(2, 100), default=2, show_default=True, help="How many.")
@click.option("--by", metavar="GROUPING", help="Who a source is; default: the first of the valuation.")
def what_if(results: str, without: tuple[str, ...], split: tuple[str, ...], parts: int, by: str | None) -> None:
    """Print a table for what is absent, and one for each source that splits."""
    folder = finished(results)
    if not without and not split:
        raise InputError("nothing to ask: pass --without SOURCE or --split SOURCE")
    with many_imports():
        from dataworth.what_if import what_if as asked

    say("\n\n".join(asked(folder, without, split, parts, by)))


@click.command(help="Two valuations side by side: parameters, shares, intervals, ranks.")
@click.argument("first", metavar="RESULTS_A")
@click.argument("second", metavar="RESULTS_B")
@click.option("--html", metavar="FILE", help="Also write a page.")
def compare(first: str, second: str, html: str | None) -> None:
    """Print what differs between two results folders."""
    with many_imports():
        from dataworth.command.compare import compare as compared

    say(compared(first, second, html))


ANSWERS = (top, explain, what_if, compare)
