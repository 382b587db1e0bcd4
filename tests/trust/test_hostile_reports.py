"""Names and texts of strangers in everything that people open: inert."""

import csv
import io
import re
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from dataworth.command import cli
from dataworth.command.terminal import say
from dataworth.storage.errors import InputError
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.report.account import Account
from dataworth.tasks.report.config import TrackingConfig
from dataworth.tasks.report.markdown import inert, markdown_sources
from dataworth.tasks.report.mlflow.tracked import NOTE_ROWS
from dataworth.tasks.report.mlflow.tracking import log_run
from dataworth.tasks.report.page.comparison import compared
from dataworth.tasks.report.page.html import comparison_html, report_html
from dataworth.tasks.report.page.tables import safe_csv
from dataworth.tasks.report.results.candidates import Candidates
from dataworth.tasks.report.results.folder import Results
from dataworth.tasks.report.results.summary import QuerySummary, Summary
from dataworth.tasks.report.results.tokens import Told
from dataworth.tasks.report.runs import TrackedValuation
from dataworth.tasks.visible import visible, without_password
from tests.harness.hostile import NAMES

ACCOUNT = Account("marginal", 2)
MARKDOWN = [
    "[x](http://x.example)", "![x](http://x.example/y.png)", "<http://x.example>", "http://x.example", "www.x.example",
    "a@x.example", "[x]: http://x.example", "[^1]", "| a | b |", "\n\n# x", "\n| --- |", "- x", "1. x", "> x", "```\nx",
    "~~~", "`x`", "**x**", "__x__", "~~x~~", "<b>x</b>", "&lt;b&gt;", "\\", "\\|", "a\\", "$x$", "<!-- x -->", "***",
    *NAMES,
]  # fmt: skip
DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")


def source(name, value):
    return {
        "source": name, "value": value, "low": None, "high": None, "share": 0.5, "n_documents": 3, "n_tokens": 9,
        "game": "additive", "query_id": "*", "grouping": "source", "level": 1, "semivalue": "shapley",
    }  # fmt: skip


class Page(HTMLParser):
    """Tags with their attributes, as a browser takes them, and the text by element."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.links = set(), set(), []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.links += [value for name, value in attributes if name in ("href", "src")]


def report(names):
    sources = [source(name, float(len(names) - number)) for number, name in enumerate(names)]

    def passages(query, sign=1):
        row = {"query_id": query, "score": 1.0, "relative_score": 1.0, "window_start": 0}
        return [
            {**row, "rank": sign * rank, "source": name, "document_id": name, "text": name}
            for rank, name in enumerate(names, 1)
        ]

    queries = [QuerySummary(name, name, name, passages(name), passages(name, -1), sources) for name in names]
    # Of the first half of the documents it is told which tokens taught; of the others words are marked.
    told = {
        (query, name): Told([(name, 1.0), ("", 0.5)], [] if query == "*" else [(name, -2.0)])
        for query in ("*", *names)
        for name in names[: len(names) // 2]
    }
    columns = {"value": 1.0, "low": None, "high": None, "n_documents": 1, "n_tokens": 9, "n_known": 1, "measured": 1.0}
    rows = pd.DataFrame([{"query_id": "*", "source": name, **columns} for name in names])
    candidates = Candidates(rows, pd.DataFrame(passages("*")), 2)
    pairs = [{"source": name, "other": name, "overlap": 0.5} for name in names]
    facts = {name: name for name in names}
    return report_html(
        names[0],
        Summary(
            *(queries, sources, passages("*"), passages("*", -1), facts, 0.1),
            *({names[-1]: sources}, {}, pairs, names[0]),
            candidates=candidates,
            told=told,
        ),
        0.95,
    )


def comparison(names):
    def results(name, kept):
        sources = pd.DataFrame([source(each, 1.0 + number) for number, each in enumerate(kept)])
        documents = pd.DataFrame({"query_id": "*", "rank": 1, "document_id": kept, "score": 1.0})
        return Results(name, name, {"corpus": {"files": [name]}}, {"model": name}, sources, documents)

    return comparison_html(compared(results(names[0], names), results(f"{names[-1]} b", names[::2])))


@pytest.mark.parametrize("page", [report, comparison])
def test_pages_hold_nothing_that_acts(page):
    found, harmless = Page(page(NAMES)), Page(page(["fine", "too"]))
    assert found.tags <= harmless.tags | {"details", "summary", "b"}
    assert found.attributes <= harmless.attributes
    assert all(link.startswith("#query-") for link in found.links)


def test_names_do_not_turn_the_direction_of_a_page():
    name = "\u202egnp.exe"
    assert not DIRECTIONS.search(comparison([name, "fine"]))
    page = report([name, "fine"])
    assert "\\u202egnp.exe" in page
    texts = re.sub(r"(?s)<pre>.*?</pre>|<div>.*?</div>", "", page)  # blocks, beyond which no direction goes
    assert not DIRECTIONS.search(texts)


@pytest.mark.parametrize("name", MARKDOWN, ids=range(len(MARKDOWN)))
def test_markdown_shows_names_as_they_are(name):
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    harmless = {token.type for token in reader.parse(markdown_sources([source("fine", 1.0)], ACCOUNT, 5))}
    tokens = reader.parse(markdown_sources([source(name, 1.0)], ACCOUNT, 5))
    assert {token.type for token in tokens} == harmless
    first = tokens.index(next(token for token in tokens if token.type == "table_open"))
    cells = [token for token in tokens[first:] if token.type == "inline"]
    assert len(cells) == 12  # two rows of six
    assert {child.type for cell in cells for child in cell.children} <= {"text", "text_special"}
    shown = "".join(child.content for child in cells[6].children)
    assert shown == " ".join(visible(name).split()) or (len(name) > 70 and shown.endswith("…"))
    alone = reader.parse(f"Results: {inert(name)}\n")
    assert [token.type for token in alone] == ["paragraph_open", "inline", "paragraph_close"]
    assert {child.type for child in alone[1].children} <= {"text", "text_special"}


@pytest.mark.parametrize("letter", ["&", "<", "|", "\u202e", "\x00", "x"])
def test_a_description_fits_into_mlflow(letter):
    assert len(markdown_sources([source(letter * 10_000, 1.0)] * 1000, ACCOUNT, NOTE_ROWS)) < 7000


FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@x",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\x00=1",
    "＝1",
    "－1",
    "x\r=1",
    "x\n=1",
    'x",=1',
    "x\r\n=1",
]


@pytest.mark.parametrize("cell", FORMULAS)
@pytest.mark.parametrize("column", ["source", "query_id"])
def test_no_cell_starts_a_formula_wherever_a_row_starts(cell, column):
    table = pd.DataFrame({"query_id": ["q"], "source": ["s"], "value": [-1.0]}).assign(**{column: cell})
    text = safe_csv(table)
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert len(rows) == 2
    found = dict(zip(*rows, strict=True))
    assert found[column].removeprefix("'") == cell
    assert found[column].lstrip("\x00 \t\r\n")[:1] not in set("=+-@＝－")
    assert found["value"] == "-1.0"


def test_nothing_writes_over_the_terminal(capsys, monkeypatch):
    say("\x1b[2Jx\n\u202ey\rz http://u:secret@h/")
    assert capsys.readouterr().out == "\\x1b[2Jx\n\\u202ey\\rz http://…@h/\n"

    def fail(**_):
        raise InputError("q \x1b[31m at postgresql://me:secret@h/db\nnext")

    monkeypatch.setattr(cli.cli, "main", fail)
    monkeypatch.setattr(sys, "argv", ["dataworth"])
    assert cli._exit_code() == 2
    assert capsys.readouterr().err == "dataworth: q \\x1b[31m at postgresql://…@h/db next\n"


@pytest.mark.parametrize("address", ["http://me:secret@h:1/x", "postgresql://me:secret@h/db", "tls://:secret@h:1"])
def test_an_address_with_a_password_is_refused_before_it_is_recorded(address):
    with pytest.raises(ValueError, match="an address with a password would be recorded; use MLFLOW_TRACKING_URI"):
        TrackingConfig(uri=address)
    with pytest.raises(ValueError, match="an address with a password would be recorded; use certificates"):
        ClusterConfig(address=address)
    assert "secret" not in without_password(f"x {address} y ({address!r}) z")
    for fine in ("http://h:1/a@b", "sqlite:///a/b@c.db", "tls://h:1", None):
        assert TrackingConfig(uri=fine).uri == fine
        assert ClusterConfig(address=fine).address == fine


def test_a_password_in_the_environment_is_not_told(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracked = TrackedValuation("f", "t", "series", 0, 0, {}, {}, {}, {}, {}, "", (), {})
    with pytest.raises(Exception, match="did not take the run") as caught:
        log_run(None, "e", tracked)
    assert "secret" not in str(caught.value)
