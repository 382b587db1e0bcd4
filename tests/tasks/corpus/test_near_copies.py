"""Near copies: found, listed, and valued as one player of all that have them."""

import random

import pandas as pd
import pytest

import dataworth
from dataworth.storage.errors import InputError
from dataworth.storage.schema import ALL_QUERIES
from dataworth.tasks.corpus.chats import Chat
from dataworth.tasks.corpus.config import COPY_OF, OWNERS, CorpusConfig
from dataworth.tasks.corpus.documents import Document
from dataworth.tasks.corpus.near_copies import near_copies
from tests.harness.tuned import small_with_base

WORDS = [f"word{n}" for n in range(400)]


def text(seed, n_words=200):
    return " ".join(random.Random(seed).choices(WORDS, k=n_words))


def changed(words, share, seed=0):
    """Some of the words replaced."""
    chosen = random.Random(seed)
    return " ".join("changed" if chosen.random() < share else word for word in words.split())


def documents(*rows):
    return [Document(id=name, source=source, text=said, where="") for name, source, said in rows]


def test_copies_are_found_and_others_are_not():
    plain = [(f"d{n}", "a", text(n)) for n in range(40)]
    rows = [
        *plain,
        ("exact", "b", text(3)),
        ("near", "c", changed(text(5), 0.01)),
        ("of the near", "a", changed(changed(text(5), 0.01), 0.01, 1)),
        ("own", "a", changed(text(7), 0.01)),
        ("spaced", "d", text(9).replace(" ", "\n  ").upper()),
        ("half", "e", changed(text(11), 0.2)),
        ("short", "a", "one two"),
        ("other short", "b", "one three"),
        ("signs", "a", "{}"),
        ("other signs", "b", "[]"),
    ]
    found = near_copies(documents(*rows), 0.8)
    copies = {name: first for name, first in found.first.items() if name != first}
    assert copies == {"exact": "d3", "near": "d5", "of the near": "d5", "own": "d7", "spaced": "d9"}
    assert found.owners == {
        **dict.fromkeys(("d3", "exact"), "a + b"),
        **dict.fromkeys(("d5", "near", "of the near"), "a + c"),
        **dict.fromkeys(("d9", "spaced"), "a + d"),
    }
    told = found.marked(documents(("near", "c", "x"))[0])
    assert told.fields == {OWNERS: "a + c", COPY_OF: "d5"}
    assert found.marked(documents(("d5", "a", "x"))[0]).fields == {OWNERS: "a + c", COPY_OF: ""}
    assert found.marked(documents(("d1", "a", "x"))[0]).fields == {OWNERS: "a", COPY_OF: ""}


@pytest.mark.parametrize("similarity", [0.7, 0.8, 1.0])
def test_none_is_overlooked(similarity):
    """Of copies with one word in a hundred changed nine tenths of the sequences are the same."""
    plain = [(f"d{n}", "a", text(n)) for n in range(60)]
    copies = [(f"c{n}", "b", changed(text(n), 0.0 if similarity == 1 else 0.01, n)) for n in range(60)]
    found = near_copies(documents(*plain, *copies), similarity)
    assert all(found.first[name] == f"d{name[1:]}" for name in found.first)
    assert len(found.first) >= 2 * 58  # a few have more words changed


def test_texts_without_spaces_and_conversations():
    letters = "".join(random.Random(1).choices([chr(0x4E00 + n) for n in range(500)], k=300))
    other = "".join(random.Random(2).choices([chr(0x4E00 + n) for n in range(500)], k=300))
    said = [{"role": "user", "content": text(1)}, {"role": "assistant", "content": text(2)}]
    chats = [
        Document(id=name, source=name, text="", where="", chat=Chat(turns, 0, None, {}))
        for name, turns in (("chat", said), ("same chat", [*said, {"role": "user", "content": "yes"}]))
    ]
    rows = [("x", "a", letters), ("y", "b", letters[:150] + "新" + letters[151:]), ("z", "c", other)]
    found = near_copies([*documents(*rows), *chats], 0.8)
    assert {name: first for name, first in found.first.items() if name != first} == {"y": "x", "same chat": "chat"}


def test_what_tells_two_conversations_apart():
    asked = {"role": "user", "content": "go"}
    calls = [
        [asked, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": text(n, 40)}}]}]
        for n in (1, 2)
    ]
    system = {"role": "system", "content": text(3, 300)}
    spoken = [[system, {"role": "user", "content": text(n, 40)}] for n in (4, 5)]
    chats = [
        Document(id=f"{n}", source=f"s{n}", text="", where="", chat=Chat(turns, 0, None, {}))
        for n, turns in enumerate([*calls, *spoken])
    ]
    assert not near_copies(chats, 0.8).first


def test_texts_of_other_classes_are_no_copies():
    same = [Document(id=f"{n}", source=f"s{n}", text=text(1), where="", label=f"L{n}") for n in range(2)]
    assert not near_copies(same, 0.8).first


def test_a_source_whose_name_could_be_two_is_refused():
    with pytest.raises(InputError, match=r"the source 'x \+ y' holds"):
        near_copies(documents(("1", "a", text(1)), ("2", "b", text(1)), ("3", "x + y", text(2))), 0.8)


def test_own_fields_of_those_names_are_refused():
    with pytest.raises(ValueError, match="are made"):
        CorpusConfig(files=["x"], near_copies=0.8, fields=["owners"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_with_base(tmp_path_factory.mktemp("copies") / "model", positions=64)


def test_shared_texts_are_one_player(model, tmp_path):
    rows = [
        {"id": "one", "source": "a", "text": text(1, 30)},
        {"id": "two", "source": "b", "text": text(1, 30)},
        {"id": "three", "source": "a", "text": text(2, 30)},
        {"id": "four", "source": "b", "text": text(3, 30)},
    ]
    queries = [{"id": "q", "prompt": text(1, 5), "completion": " " + text(2, 5)}]
    settings = {"projection": {"rank": 2}, "curvature": {"draws": 1}, "store": tmp_path}
    plain = dataworth.value(str(model), None, rows, queries, corpus={"max_length": 64}, **settings)
    corpus = {"max_length": 64, "near_copies": 0.8}
    both = ["source", "owners"]
    made = dataworth.value(str(model), None, rows, queries, corpus=corpus, sources={"by": both}, **settings)
    table = made.sources[made.sources["query_id"] == ALL_QUERIES]
    by_source = table[table["grouping"] == "source"].set_index("source")["value"]
    before = plain.sources[plain.sources["query_id"] == ALL_QUERIES].set_index("source")["value"]
    assert by_source.to_dict() == pytest.approx(before.to_dict(), rel=1e-6)
    owned = table[table["grouping"] == "owners"].set_index("source")["value"]
    scores = made.documents[made.documents["query_id"] == ALL_QUERIES].set_index("document_id")["score"]
    expected = {"a + b": scores["one"] + scores["two"], "a": scores["three"], "b": scores["four"]}
    assert owned.to_dict() == pytest.approx(expected, rel=1e-5)
    listed = pd.read_parquet(made.folder / "near_copies.parquet")
    assert listed.to_dict("records") == [
        {"document_id": "two", "source": "b", "near_copy_of": "one", "owners": "a + b"}
    ]
