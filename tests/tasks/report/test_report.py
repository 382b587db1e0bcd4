"""The report and the tables: everything escaped, nothing from outside."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from itertools import pairwise

import pandas as pd
import pytest

from dataworth.tasks.report.account import Account
from dataworth.tasks.report.markdown import markdown_sources
from dataworth.tasks.report.numbers import interval, number, percent
from dataworth.tasks.report.page.certainty import certainty
from dataworth.tasks.report.page.html import report_html
from dataworth.tasks.report.page.tables import safe_csv
from dataworth.tasks.report.results.candidates import Candidates
from dataworth.tasks.report.results.parameters import flat
from dataworth.tasks.report.results.query_losses import QueryLoss
from dataworth.tasks.report.results.summary import QuerySummary, Summary
from dataworth.tasks.report.results.tokens import Told

ACCOUNT = Account("marginal", 2)
EVIL = "<script>alert(1)</script> \"&' | [x](http://x) `y` {{ 7 * 7 }}"


def source(name, value, low, high, share=0.5):
    return {
        "source": name, "value": value, "low": low, "high": high, "share": share, "n_documents": 3, "n_tokens": 1234,
        "game": "additive",
    }  # fmt: skip


def passage(text, query="q", rank=1):
    return {
        "query_id": query, "rank": rank, "source": EVIL, "document_id": EVIL, "score": 1.5, "relative_score": -0.2,
        "window_start": 4, "text": text,
    }  # fmt: skip


class Tags(HTMLParser):
    """What a browser would take for tags and attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.n_items, self._in_chart = set(), set(), 0, False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag == "ol":
            self._in_chart = ("class", "chart") in attributes
        self.n_items += tag == "li" and self._in_chart


def evil_candidates():
    row = {"query_id": "*", "source": EVIL, "value": 1.0, "low": None, "high": 2.0, "n_documents": 1, "n_tokens": 0}
    row |= {"n_known": 1, "measured": -1.0, "nats_per_query": 0.5, "nats_per_1000_tokens": None}
    return Candidates(pd.DataFrame([row]), pd.DataFrame([passage(EVIL, "*")]), 1)


def evil_summary():
    sources = [source(EVIL, 2.0, None, None), source("plain", -1.0, -2.0, 0.5, None)]
    query = QuerySummary(EVIL, EVIL, EVIL, [passage(EVIL, EVIL)], [passage(EVIL, EVIL, -1)], sources)
    told = {(EVIL, EVIL): Told([(EVIL, 1.0), ("", 0.1)], [(EVIL, -1.0)])}
    least = [passage(EVIL, "*", -1)]
    return Summary([query], sources, [passage(EVIL, "*")], least, {EVIL: EVIL}, candidates=evil_candidates(), told=told)


def test_the_report_escapes_everything_and_asks_for_nothing():
    page = report_html(EVIL, evil_summary(), 0.95)
    assert page.count("<script") == 1  # its own, which its policy names
    script = page[page.index("<script>") + len("<script>") : page.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "{{ 7 * 7 }}" in page
    assert "49" not in re.sub(r"<(style|script)>.*?</\1>|sha256-[^']*", "", page, flags=re.S)
    assert not re.search(r"(src|href)=[\"'](?!#)", page)
    assert "default-src 'none'" in page
    assert page.count('class="p4"') == 2  # of the passage, and in the sentence that says what it means
    assert page.count('class="m4"') == 2
    assert "What would be worth adding" in page


def test_the_report_shows_unknown_intervals_and_bars_on_one_axis():
    page = report_html("t", evil_summary(), 0.95)
    assert "unknown" in page
    assert "95% interval" in page
    bars = re.findall(r'<rect class="(plus|minus)" x="([\d.]+)%" width="([\d.]+)%"', page)
    assert bars
    assert all(float(left) + float(width) <= 100.01 for _, left, width in bars)


def test_a_page_of_ten_thousand_sources_and_a_thousand_queries_stays_small():
    rows = [source(f"source {n}", 1 / (n + 1), None, None, 1e-4) for n in range(10_000)]
    text = "Words that many passages share, and some that none does. " * 12
    queries = [
        QuerySummary(
            *(f"query {n}", text[:80], text[80:150]),
            [passage(f"{n} {text}", f"query {n}", rank) for rank in range(1, 21)],
            [passage(f"{n} {text}", f"query {n}", -rank) for rank in range(1, 21)],
            rows[:20],
        )
        for n in range(1000)
    ]
    page = report_html("t", Summary(queries, rows, [], []), 0.95)
    assert len(page.encode()) < 3_000_000
    shown = page.count('<section class="query"')
    assert 3 <= shown <= 100
    assert f"The first {shown} of 1,000; what is said of the others" in page
    assert page.count("The largest 200; all are in sources.parquet.") == 1
    assert page.count("The largest 20; all are in sources.parquet.") == shown


def test_lengths_of_bars_are_proportional_to_shares():
    shares = [0.5, 0.3, 0.15, 0.05]
    rows = [source(f"s{number}", 40 * share, None, None, share) for number, share in enumerate(shares)]
    rows.append(source("harmful", -20.0, None, None, 0.0))
    page = report_html("t", Summary([], rows, [], []), 0.95)
    drawn = page[page.index('<ol class="chart">') :].split("</ol>")[0]
    bars = re.findall(r'<rect class="(plus|minus)" x="([\d.]+)%" width="([\d.]+)%"', drawn)
    widths = [float(width) for _, _, width in bars]
    assert widths == pytest.approx([100 * part for part in (0.5, 0.3, 0.15, 0.05, 0.5)], abs=0.01)
    assert [kind for kind, _, _ in bars] == ["plus"] * 4 + ["minus"]
    assert [float(left) for _, left, _ in bars] == pytest.approx([50, 50, 50, 50, 0], abs=0.01)
    assert re.findall(r'class="amount">([^<]+)<', drawn) == ["50.0%", "30.0%", "15.0%", "5.0%", "-50.0%"]


def test_names_are_inert_in_the_charts():
    hostile = ['"><svg onload=alert(1)>', "a\nb", "語" * 200, "$x^2$", "</li></ol><script>x</script>", "{% raw %}"]
    rows = [source(name, float(9 - number), None, None, 0.1) for number, name in enumerate(hostile)]
    pairs = [{"source": one, "other": two, "overlap": -0.25} for one, two in pairwise(hostile)]
    page = report_html("t", Summary([], rows, [], [], overlaps=pairs, command="dataworth value '</pre><b>'"), 0.95)
    parsed = Tags(page)
    assert parsed.tags.isdisjoint({"img", "iframe", "link", "object", "base", "form"})
    assert page.count("<script") == 1
    assert not any(name.startswith("on") for name in parsed.attributes)
    assert parsed.n_items == 7  # one a source, and the axis
    assert "語" * 200 in page


def test_the_report_says_how_sure_it_is():
    rows = [source("a", 2.0, 1.0, 3.0), source("b", 1.0, -1.0, 1.5)]
    notes = {"v(all)": -800.0, "v(none)": -1600.0, "missed": 0.125, "reliable": True, "reach": 0.5, "coalitions": 4}
    found = certainty(rows, notes)
    assert found.warning == ""
    assert "800 nats with every source and 1,600 with none" in found.check
    assert "miss the measured ones by 12%" in found.check
    assert "cover 50% of the way" in found.check
    assert found.intervals.startswith("2 of 2 intervals are known; 1 of them contains 0")
    assert found.intervals.endswith("their order is not certain.")
    fallen = {**notes, "fallback": "newton: predicted changes of loss miss the measured ones by 410%"}
    page = report_html("t", Summary([], rows, [], [], notes=fallen), 0.95)
    assert page.count("The game newton is not to be trusted for this model (predicted changes of loss miss") == 2
    assert certainty([source("a", 1.0, None, None)], {}).intervals == "No interval is known."
    assert "not checked against the model" in certainty(rows, {"error": "documents"}).check


def test_the_report_says_what_values_are_means_over():
    rows = [source("a", 2.0, 1.0, 3.0)]
    assert certainty(rows, {}).averages == ""
    notes = {"checkpoints": 3, "projections": 2, "v(all)": -8.0, "v(none)": -16.0, "missed": 0.1}
    found = certainty(rows, notes).averages
    assert found.startswith("Values are the mean over 3 checkpoints and 2 projections, and intervals tell")
    assert "The check is that of the first." in found
    assert "of the first checkpoint." in found
    assert found in report_html("t", Summary([], rows, [], [], notes=notes), 0.95)
    assert "check" not in certainty(rows, {"projections": 2}).averages


def test_the_report_names_the_loss_and_the_command():
    rows = [source("a", 2.0, 1.0, 3.0)]
    queries = [
        QuerySummary("q0", "What is", " this?", [], [], rows, QueryLoss(6.0, 4, False)),
        QuerySummary("q1", "A film", "good", [], [], rows, QueryLoss(0.5, 1, True)),
        QuerySummary("q2", "Old", " store", [], [], rows),
    ]
    page = report_html("t", Summary(queries, rows, [], [], command="cd /x\ndataworth value --model 'a b'"), 0.95)
    assert "loss 1.5 nats per token over 4 tokens, 6 nats in all" in " ".join(page.split()).replace(
        "tokens ,", "tokens,"
    )
    assert "loss 0.5 nats" in page
    assert "dataworth value --model &#39;a b&#39;</pre>" in page
    assert page.count("What is<mark> this?</mark>") == 2


def test_shared_words_are_marked_and_said_to_be_that():
    passages = [passage("The counter counts a bag of words"), passage("the words of the sea")]
    query = QuerySummary("q", "Which Counter", " counts the words", passages, [], [source("a", 1.0, None, None)])
    page = report_html("t", Summary([query], query.sources, [], []), 0.95)
    assert 'The <b class="word">counter</b> <b class="word">counts</b> a bag' in page.replace(
        '<b class="word">The</b>', "The"
    )
    assert "shares with the query: counter, counts" in page
    assert "which words taught the model is not measured" in page


def test_markdown_cells_are_inert():
    table = markdown_sources(evil_summary().sources, ACCOUNT, 25)
    row = table.splitlines()[2]
    assert "<script" not in row
    assert "[x](" not in row
    assert len(re.findall(r"(?<!\\)\|", row)) == 7


def test_a_long_table_of_long_names_is_cut():
    sources = [source("|" * 10_000, 2.0, None, None)] * 1000
    table = markdown_sources(sources, ACCOUNT, 25)
    assert len(table) < 7000
    assert table.endswith("and 975 more in sources.csv")


@pytest.mark.parametrize("cell", ["=1+1", "+x", "-x", "@x", "\tx"])
def test_no_cell_starts_a_formula(cell):
    table = pd.DataFrame({"source": [cell, "fine"], "value": [-1.0, 2.0]})
    back = pd.read_csv(io.StringIO(safe_csv(table)), dtype={"source": str}, keep_default_na=False)
    assert back["source"].tolist() == [f"'{cell}", "fine"]
    assert back["value"].tolist() == [-1.0, 2.0]


def test_numbers_as_people_read_them():
    found = [number(value) for value in (104_212.0, -4637.21, 0.0, 0.051234, 3.0e-7, 2.5e12, None, float("nan"))]
    assert found == ["104,200", "-4,637", "0", "0.05123", "3e-07", "2.5e+12", "unknown", "unknown"]
    assert interval(-1.0, 2.0) == "-1 … 2"
    assert interval(None, None) == interval(float("nan"), float("nan")) == "unknown"
    assert (percent(0.1234), percent(0.1234, 0), percent(None)) == ("12.3%", "12%", "")


def test_parameters_are_flat_text():
    assert flat({"a": {"b": 1, "c": ["x", "y"]}, "d": None}) == {"a.b": "1", "a.c": "x, y", "d": "None"}


def test_a_payout_is_shown_where_it_is_not_the_share():
    def page(payout, clipped=None):
        rows = [{**source("a", 2.0, 1.0, 3.0, 1.0), "payout": payout}]
        return report_html("t", Summary([], rows, [], [], clipped=clipped), 0.95)

    assert "payout</th>" not in page(1.0)
    assert "<th>payout</th>" in page(0.875)
    assert "<td>87.5%</td>" in page(0.875)
    assert "Clipped mass" not in page(1.0)
    assert "Clipped mass: 12.5% of the positive total" in page(1.0, 0.125)
