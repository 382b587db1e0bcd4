"""The page of a valuation in a browser, from a file, without a server: what is sought is shown, and nothing else."""

import pandas as pd
import pytest

from dataworth.tasks.report.page.html import report_html
from dataworth.tasks.report.results.summary import QuerySummary, Summary

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.xdist_group("browser")]


def source(name, value):
    row = {"source": name, "value": value, "low": None, "high": None, "share": 0.5, "n_documents": 3, "n_tokens": 12}
    return row | {"game": "additive"}


def passage(query, rank, name, text):
    row = {"query_id": query, "rank": rank, "source": name, "document_id": f"d of {name}", "score": 1.0}
    return row | {"relative_score": 0.1, "window_start": 0, "text": text}


@pytest.fixture
def opened(page, tmp_path):
    """The page, with what a browser complains of."""
    sources = [source("News & views", 2.0), source("books", 1.0)]
    texts = {"News & views": "A comet passed the harbour.", "books": "Bread is baked at night."}
    queries = [
        QuerySummary(query, f"Asked of {query}: ", "said", [passage(query, 1, name, texts[name])], [], sources)
        for query, name in (("sky", "News & views"), ("oven", "books"))
    ]
    every = [passage("*", rank, name, texts[name]) for rank, name in enumerate(texts, 1)]
    path = tmp_path / "report.html"
    path.write_text(report_html("t", Summary(queries, sources, every, []), 0.95))
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    yield page
    assert complaints == []


def shown(page, what):
    return [each.text_content() for each in page.locator(what).all() if each.is_visible()]


def test_words_a_source_and_a_query_are_found(opened, screenshot):
    assert len(shown(opened, "section.query")) == 2
    opened.get_by_label("Find").fill("COMET harbour")
    assert [text.split()[0] for text in shown(opened, "section.query")] == ["sky"]
    assert all("comet" in text for text in shown(opened, "ol.passages > li"))
    assert opened.locator("#found").text_content() == "1 of 2 queries, 2 of 4 passages"
    opened.get_by_label("Find").fill("oven")
    assert [text.split()[0] for text in shown(opened, "section.query")] == ["oven"]
    opened.get_by_label("Find").fill("nobody wrote this")
    assert shown(opened, "section.query") == shown(opened, "ol.passages > li") == []
    opened.get_by_label("Find").fill("")
    assert len(shown(opened, "section.query")) == 2
    assert opened.locator("#found").text_content() == ""
    opened.locator("button[data-find='News & views']").first.click()
    assert opened.get_by_label("Find").input_value() == "News & views"
    assert [text.split()[0] for text in shown(opened, "section.query")] == ["sky"]
    screenshot("report-found")


def test_a_source_is_chosen_by_the_keyboard(opened):
    opened.locator("button[data-find='books']").first.focus()
    opened.keyboard.press("Enter")
    assert opened.get_by_label("Find").input_value() == "books"
    assert opened.evaluate("document.activeElement.id") == "find"
    assert pd.Series(shown(opened, "ol.passages > li")).str.contains("Bread").all()
