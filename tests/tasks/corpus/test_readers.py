"""Reading documents and queries, and one clear line for everything that can be wrong with them."""

import json

import pandas as pd
import pytest

from dataworth.storage.errors import InputError
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.readers import read_documents, read_queries
from dataworth.tasks.corpus.rejected import Rejected

GOOD = [{"id": "a", "source": "s", "text": "one"}, {"id": 7, "source": "t", "text": "two"}]


def read(*paths, on_bad_row="stop", **fields):
    rejected = Rejected(on_bad_row)
    config = CorpusConfig(files=[str(path) for path in paths], **fields)
    found = [(d.id, d.source, d.text) for d in read_documents(config, rejected)]
    return found if on_bad_row == "stop" else (found, rejected.sentences)


def jsonl(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


EXPECTED = [("a", "s", "one"), ("7", "t", "two")]


def test_jsonl(tmp_path):
    assert read(jsonl(tmp_path / "c.jsonl", GOOD[0], "", GOOD[1])) == EXPECTED


def test_renamed_fields_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"doc": "a", "who": "s", "body": "one"}).encode())
    assert read(path, id="doc", source="who", text="body") == EXPECTED[:1]


def test_csv(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text('id,source,text\na,s,one\n7,t,"two"\n')
    assert read(path) == EXPECTED


def test_parquet(tmp_path):
    path = tmp_path / "c.parquet"
    pd.DataFrame([{**row, "id": str(row["id"])} for row in GOOD]).to_parquet(path)
    assert read(path) == EXPECTED


def test_a_folder_of_text(tmp_path):
    root = tmp_path / "corpus"
    (root / "poems").mkdir(parents=True)
    (root / "poems" / "one.txt").write_text("roses")
    (root / "loose.md").write_text("violets")
    (root / ".hidden").write_text("not read")
    assert read(root) == [("loose.md", "corpus", "violets"), ("poems/one.txt", "poems", "roses")]


def test_a_data_set_of_the_datasets_library(tmp_path):
    (tmp_path / "data").mkdir()
    jsonl(tmp_path / "data" / "train.jsonl", {**GOOD[0]}, {**GOOD[1], "id": "7"})
    assert read(f"hf:{tmp_path / 'data'}") == EXPECTED
    assert read(f"hf:{tmp_path / 'data'}:train") == EXPECTED


BAD_LINES = {
    '{"id": "a", "source": "s", "text": ""}': "line 2, field 'text': empty",
    '{"id": "a", "source": "s", "text": "  \\n"}': "line 2, field 'text': nothing but white space",
    '{"id": "a", "source": "s"}': "line 2, field 'text': missing",
    '{"id": "a", "source": null, "text": "x"}': "line 2, field 'source': null",
    '{"id": "", "source": "s", "text": "x"}': "line 2, field 'id': empty",
    '{"id": true, "source": "s", "text": "x"}': "line 2, field 'id': expected text, got bool",
    '{"id": "a", "source": 1.5, "text": "x"}': "line 2, field 'source': expected text, got float",
    '{"id": "a", "source": "s", "text": ["x"]}': "line 2, field 'text': expected text, got list",
    '{"id": "first", "source": "s", "text": "x"}': "line 2, field 'id': 'first' was already used at",
    '{"id": "a", "source": "s", "text": "\\ud800"}': "line 2, field 'text': holds half of a surrogate pair",
    '{"id": "a", "source"': "line 2: broken JSON",
    "[1, 2]": "line 2: expected a JSON object, got list",
    "[" * 100_000: "line 2: broken JSON",
    json.dumps({"id": "i" * 10_001, "source": "s", "text": "x"}): "line 2, field 'id': 10001 characters long",
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_bad_lines(tmp_path, line, message):
    path = jsonl(tmp_path / "c.jsonl", {"id": "first", "source": "s", "text": "fine"}, line)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, {message}")
    assert "\n" not in str(caught.value)


def test_bad_utf8(tmp_path):
    for name in ("c.jsonl", "c.csv"):
        path = tmp_path / name
        path.write_bytes(b"id,source,text\n" if name == "c.csv" else b"\n")
        with path.open("ab") as file:
            file.write(b'{"id": "\xff"}\n')
        with pytest.raises(InputError, match="line 2: not valid UTF-8"):
            read(path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.txt").write_bytes(b"fine\nbad \xff")
    with pytest.raises(InputError, match=r"x\.txt, line 2: not valid UTF-8"):
        read(tmp_path / "folder")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jsonl: no such file"):
        read(tmp_path / "gone.jsonl")
    (tmp_path / "c.tex").write_text("x")
    expected = (
        r"c\.tex: unknown kind of file; expected \.jsonl, \.ndjson, \.json, \.csv, \.parquet, \.arrow, \.txt, \.md"
    )
    with pytest.raises(InputError, match=expected):
        read(tmp_path / "c.tex")
    (tmp_path / "c.parquet").write_text("not parquet")
    with pytest.raises(InputError, match=r"c\.parquet: not a readable Parquet file"):
        read(tmp_path / "c.parquet")
    (tmp_path / "c.csv").write_text('id,source,text\na,s,"open\n')
    with pytest.raises(InputError, match="broken CSV"):
        read(tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text("id,source,text\na,s,x,y\n")
    with pytest.raises(InputError, match="line 2: has more cells"):
        read(tmp_path / "d.csv")
    with pytest.raises(InputError, match="cannot be loaded"):
        read(f"hf:{tmp_path / 'nothing'}")
    with pytest.raises(InputError, match="expected hf:NAME"):
        read("hf:")


def test_a_corpus_without_documents_is_refused(tmp_path):
    for name, content in (("c.jsonl", "\n"), ("c.csv", "id,source,text\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match="holds no document"):
            read(tmp_path / name)


@pytest.mark.parametrize("pair", [("prompt", "completion"), ("prompt", "response"), ("instruction", "output")])
def test_half_of_a_prompt_and_its_completion_is_no_text(tmp_path, pair):
    row = {"id": "a", "source": "s", **dict.fromkeys(pair, "one")}
    pd.DataFrame([row]).to_parquet(tmp_path / "c.parquet")
    pd.DataFrame([row]).to_csv(tmp_path / "c.csv", index=False)
    jsonl(tmp_path / "c.jsonl", row)
    (tmp_path / "data").mkdir()
    jsonl(tmp_path / "data" / "train.jsonl", row)
    for name in (*(tmp_path / f"c.{kind}" for kind in ("jsonl", "csv", "parquet")), f"hf:{tmp_path / 'data'}"):
        for text in pair:
            with pytest.raises(InputError, match=f"c?.*field '{text}': {pair[0]} and {pair[1]} are halves of one text"):
                read(name, text=text)
    whole = jsonl(tmp_path / "d.jsonl", {**row, "text": "one one"})
    if pair == ("prompt", "completion"):
        with pytest.raises(InputError, match="has text and prompt and completion; say which the model was trained on"):
            read(whole)
    assert read(whole, form="text") == [("a", "s", "one one")]


def test_a_conversation_is_no_text(tmp_path):
    row = {"id": "a", "source": "s", "messages": [{"role": "user", "content": "one"}]}
    pd.DataFrame([row]).to_parquet(tmp_path / "c.parquet")
    for path in (jsonl(tmp_path / "c.jsonl", row), tmp_path / "c.parquet"):
        with pytest.raises(
            InputError, match="field 'messages': expected text, got list of objects, as conversations are"
        ):
            read(path, text="messages")


def test_nothing_is_called_missing_that_is_null(tmp_path):
    pd.DataFrame([{"id": "a", "source": None, "text": "x"}]).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"c\.parquet, row 1, field 'source': null$"):
        read(tmp_path / "c.parquet")
    (tmp_path / "c.csv").write_text("id,source,text\na,,x\n")
    with pytest.raises(InputError, match=r"c\.csv, line 2, field 'source': empty$"):
        read(tmp_path / "c.csv")
    with pytest.raises(InputError, match=r"q\.jsonl, line 1, field 'prompt': null$"):
        queries(jsonl(tmp_path / "q.jsonl", {"id": "q", "prompt": None}))


ALIKE = [("\xe9", "e\u0301"), ("The Times", "The Times "), ("The Times", "The\u00a0Times"), ("a", "\u200ba")]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_names_that_look_the_same_are_the_same_or_refused(tmp_path, one, other):
    """One publisher is not two because of a space; which spelling is meant only the corpus' owner knows."""
    rows = [{"id": f"d{n}", "source": name, "text": "x"} for n, name in enumerate((one, "b", one, other))]
    with pytest.raises(InputError) as caught:
        read(jsonl(tmp_path / "c.jsonl", *rows))
    assert str(caught.value) == (
        f"{tmp_path}/c.jsonl, line 4, field 'source': {other!a} looks the same as {one!a} at "
        f"{tmp_path}/c.jsonl, line 1, and is not "
        "(white space, unseen characters or Unicode forms differ); write both alike"
    )
    assert [source for _, source, _ in read(jsonl(tmp_path / "c.jsonl", *rows[:3]))] == [one, "b", one]
    ids = [{"id": name, "source": "s", "text": "x"} for name in (one, other)]
    with pytest.raises(InputError, match="line 2, field 'id': .* looks the same as"):
        read(jsonl(tmp_path / "i.jsonl", *ids))
    fields = [{"id": str(n), "source": "s", "text": "x", "publisher": name} for n, name in enumerate((one, 1, other))]
    path = jsonl(tmp_path / "f.jsonl", *fields)
    with pytest.raises(InputError, match="line 3, field 'publisher': .* looks the same as"):
        read(path, fields=["publisher"])
    assert len(read(path)) == 3  # nobody groups by it
    with pytest.raises(InputError, match="line 2, field 'id': .* looks the same as"):
        queries(jsonl(tmp_path / "q.jsonl", *({"id": name, "prompt": "x"} for name in (one, other))))


def queries(path):
    return [(q.id, q.prompt, q.completion) for q in read_queries(QueriesConfig(file=str(path)))]


def test_queries(tmp_path):
    path = jsonl(tmp_path / "q.jsonl", {"id": "q", "prompt": "Why", "completion": " not"}, {"id": 2, "prompt": "How"})
    assert queries(path) == [("q", "Why", " not"), ("2", "How", None)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "q"}, "field 'prompt': missing"),
        ({"id": "q", "prompt": "x", "completion": ""}, "field 'completion': empty"),
        ({"id": "q", "prompt": "x", "complete": "y"}, "field 'complete': unknown"),
    ],
)
def test_bad_queries(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        queries(jsonl(tmp_path / "q.jsonl", row))


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl.gz"])
def test_queries_are_read_from_lines_of_json(tmp_path, kind):
    (tmp_path / f"q.{kind}").write_bytes(b"id,prompt\nq,x\n")
    with pytest.raises(InputError, match=r"queries are read from JSONL|not a readable \.gz file"):
        queries(tmp_path / f"q.{kind}")
    (tmp_path / "q.json").write_text('{"id": "q", "prompt": "x"}')
    assert queries(tmp_path / "q.json") == [("q", "x", None)]


def test_further_fields_are_kept(tmp_path):
    row = {"id": "a", "source": "s", "text": "x", "publisher": "p", "year": 2020, "free": True, "weight": 0.5}
    path = jsonl(tmp_path / "c.jsonl", row)
    config = CorpusConfig(files=[str(path)], fields=["year", "publisher", "free", "weight", "year"])
    (found,) = read_documents(config)
    assert found.fields == {"year": 2020, "publisher": "p", "free": True, "weight": 0.5}
    assert [d.fields for d in read_documents(CorpusConfig(files=[str(path)]))] == [{}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "null"),
        (["x"], "expected text, a number or true or false, got list"),
        (float("inf"), "inf is not a finite number"),
        (" ", "nothing but white space"),
    ],
)
def test_further_fields_that_cannot_be_used(tmp_path, value, message):
    path = jsonl(tmp_path / "c.jsonl", {"id": "a", "source": "s", "text": "x", "licence": value})
    with pytest.raises(InputError, match=f"c.jsonl, line 1, field 'licence': {message}"):
        list(read_documents(CorpusConfig(files=[str(path)], fields=["licence"])))


def test_a_folder_has_no_further_fields(tmp_path):
    (tmp_path / "a.txt").write_text("fine words")
    with pytest.raises(InputError, match="a folder of text has no field 'licence'"):
        list(read_documents(CorpusConfig(files=[str(tmp_path)], fields=["licence"])))
    for name in ("source", " ", "a>b"):
        with pytest.raises(ValueError, match="a further field has a name without '>'"):
            CorpusConfig(files=["x"], fields=[name])
