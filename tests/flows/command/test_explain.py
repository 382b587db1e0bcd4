"""Why a document has its value, from a results folder."""

import re

import pytest

import dataworth
from dataworth.command.explain import explained
from dataworth.storage.errors import InputError
from dataworth.storage.schema import ALL_QUERIES
from dataworth.tasks.report.numbers import number, percent
from tests.harness.tuned import small_with_base
from tests.reference.checkpoints import TEXTS

QUERIES = [{"id": f"q{n}", "prompt": TEXTS[n][:30], "completion": TEXTS[n][30:60]} for n in range(3)]
ROWS = [
    *({"id": f"d{n}", "source": f"s{n % 3}", "text": text} for n, text in enumerate(TEXTS)),
    {"id": "copy \x1b", "source": "s2", "text": TEXTS[0]},
]


@pytest.fixture(scope="module")
def valued(tmp_path_factory):
    """Valuations of one small model, each with its own way of scoring."""
    model = small_with_base(tmp_path_factory.mktemp("explain") / "model", positions=64)
    store = tmp_path_factory.mktemp("explain") / "store"

    def value(base=False, **scoring):
        return dataworth.value(
            *(str(model), None, ROWS, QUERIES),
            store=store,
            model={"device": "cpu", **({"base": str(model / "base")} if base else {})},
            corpus={"max_length": 64},
            projection={"rank": 2},
            curvature={"draws": 1},
            sources={"game": "additive"},
            scoring=scoring,
        )

    return value


def single_scores(made):
    """Of each query, without the row of all together."""
    return made.scores.to_pandas().drop(ALL_QUERIES).astype(float)


@pytest.mark.parametrize("base", [False, True])
def test_what_is_said_of_a_document(valued, base):
    made = valued(base, save_matrix=True)
    said = explained(made.folder, "d1")
    scores = single_scores(made)["d1"]
    n = len(QUERIES)
    sources = made.sources[made.sources["query_id"] == ALL_QUERIES].set_index("source")
    total, before = float(scores.sum()), sources["value"]
    verb, way = ("took", "off") if total > 0 else ("added", "to")
    assert f"d1, of s1. The passage of it that tells most:\n  {TEXTS[1][:60]}" in said
    assert (
        f"By its score it {verb} {number(abs(total) / n)} nats a query {way} the loss of all queries together" in said
    )
    for query, score in scores.items():
        assert re.search(rf"^{query} +\d* +{re.escape(number(score))}", said, re.M), (query, said)
    after = before["s1"] - total * (made.account.scaled_by or 1.0)
    assert (
        f"Without it s1 would be worth {number(after / n)} instead of {number(before['s1'] / n)} nats a query" in said
    )
    shares = before.clip(lower=0) / before.clip(lower=0).sum()
    assert f"instead of {percent(shares['s1'])} of the positive values" in said
    assert (made.account.scaled_by is None) != base


def test_the_words_are_those_that_gave_most(valued):
    made = valued(tokens=5)
    told = made.tokens
    query, document = told.loc[told["query_id"] != ALL_QUERIES, ["query_id", "document_id"]].iloc[0]
    own = told[(told["query_id"] == query) & (told["document_id"] == document) & (told["side"] == "answer")]
    most = own[own["text"].str.strip() != ""].nlargest(1, "score").iloc[0]
    said = explained(made.folder, document)
    assert f"of what was said {most['text']!r} {number(most['score'])}" in said
    assert "of what was said" not in next(line for line in said.splitlines() if line.startswith("  all together"))


def test_who_says_the_same_is_named_and_harmless(valued):
    made = valued(top_k=20)
    said = explained(made.folder, "d0")
    assert "The same passage is in copy" in said
    assert "\x1b" not in said
    assert "without it they would still teach it" in said


def test_what_was_not_kept(valued):
    made = valued(top_k=1, tokens=1)
    kept = set(made.documents["document_id"])
    (other, *_) = [row["id"] for row in ROWS if row["id"] not in kept]
    with pytest.raises(InputError, match="among the best of no query, and other scores were not kept: value again"):
        explained(made.folder, other)
    whole = valued(top_k=1, tokens=1, save_matrix=True)
    said = explained(whole.folder, other)
    assert said.startswith(f"{other.split(' ')[0]}")
    assert number(abs(float(single_scores(whole)[other].sum())) / len(QUERIES)) in said
    with pytest.raises(InputError, match="among the best of no query"):
        explained(whole.folder, "nobody's")
