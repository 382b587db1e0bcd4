"""Packed rows, lists, Arrow, folders of save_to_disk, patterns and sources by file, and rows that cannot be read."""

import bz2
import gzip
import hashlib
import json
from datetime import date

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from dataworth.storage.errors import InputError
from dataworth.tasks.corpus import packed as packed_files
from tests.tasks.corpus.test_readers import EXPECTED, GOOD, jsonl, read


def packed(kind, content):
    if kind == "gz":
        return gzip.compress(content[:40]) + gzip.compress(content[40:])  # two members, as `cat` makes
    return bz2.compress(content) if kind == "bz2" else pa.Codec("zstd").compress(content, asbytes=True)


@pytest.mark.parametrize("kind", ["gz", "bz2", "zst"])
def test_packed_rows(tmp_path, kind):
    content = "".join(f"{json.dumps(row)}\n" for row in GOOD).encode()
    path = tmp_path / f"c.jsonl.{kind}"
    path.write_bytes(packed(kind, content))
    assert read(path) == read(tmp_path) == EXPECTED
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=rf"c\.jsonl\.{kind}: not a readable \.{kind} file"):
        read(path)
    path.write_bytes(b"text")
    with pytest.raises(InputError, match=rf"c\.jsonl\.{kind}: not a readable \.{kind} file"):
        read(path)


def test_a_packed_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_files, "FREE_BYTES", 1000)
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" * 10_000_000))
    with pytest.raises(InputError, match=r"c\.jsonl\.gz: unpacks to more than 1,000 times its bytes"):
        read(path)


def test_a_list_of_json(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(GOOD, indent=1))
    assert read(path) == read(tmp_path) == EXPECTED
    path.write_text("".join(f"{json.dumps(row)}\n" for row in GOOD))
    assert read(path) == EXPECTED
    path.write_text(json.dumps([GOOD[0], 3]))
    with pytest.raises(InputError, match=r"c\.json, row 2: expected a JSON object, got int"):
        read(path)


def test_patterns_and_sources_by_file(tmp_path):
    for name, rows in (("1.jsonl", GOOD[:1]), ("2.jsonl", GOOD[1:])):
        jsonl(tmp_path / name, *rows)
    (tmp_path / "letter.txt").write_text("dear")
    assert read(tmp_path / "*.jsonl") == EXPECTED
    of_owner = [("a", "news", "one"), ("7", "news", "two"), ("letter.txt", "mail", "dear")]
    assert read(f"news={tmp_path}/?.jsonl", f"mail={tmp_path}/letter.txt") == of_owner
    assert read(tmp_path / "letter.txt") == [("letter.txt", tmp_path.name, "dear")]
    with pytest.raises(InputError, match="no file has such a name"):
        read(tmp_path / "*.csv")
    (tmp_path / "a=b.jsonl").write_text(json.dumps(GOOD[0]))
    assert read(tmp_path / "a=b.jsonl") == EXPECTED[:1]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_nested_fields_and_documents_without_an_id(tmp_path, kind):
    rows = [{"text": text, "meta": {"source": {"name": "s"}, "n": 1}} for text in ("one", "two", "one")]
    path = tmp_path / f"c.{kind}"
    pd.DataFrame(rows).to_parquet(path) if kind == "parquet" else jsonl(path, *rows)
    found = read(path, source="meta.source.name")
    first, second = hashlib.sha256(b"one").hexdigest()[:16], hashlib.sha256(b"two").hexdigest()[:16]
    assert found == [(first, "s", "one"), (second, "s", "two"), (f"{first}-2", "s", "one")]
    with pytest.raises(InputError, match="field 'meta.source.of': missing"):
        read(path, source="meta.source.of")
    with pytest.raises(InputError, match="field 'name': missing"):
        read(path, source="meta.source.name", id="name")


def test_ids_of_any_kind(tmp_path):
    rows = [{"id": date(2026, 1, day), "source": "s", "text": "x"} for day in (1, 2)]
    pd.DataFrame(rows).to_parquet(tmp_path / "c.parquet")
    assert [name for name, _, _ in read(tmp_path / "c.parquet")] == ["2026-01-01", "2026-01-02"]
    assert read(jsonl(tmp_path / "c.jsonl", {"id": 1.5, "source": "s", "text": "x"})) == [("1.5", "s", "x")]


def test_bad_rows_are_named_together_or_left_out(tmp_path):
    bad = [{"id": f"b{n}", "source": "s", "text": ""} for n in range(12)]
    path = jsonl(tmp_path / "c.jsonl", GOOD[0], bad[0], "{", GOOD[0], GOOD[1], *bad[1:])
    with pytest.raises(InputError) as caught:
        read(path)
    first, *others = str(caught.value).split("; ")
    assert first == (
        f"{path}, line 2, field 'text': empty (the first 10 rows cannot be read: also line 3: broken JSON (Expecting "
        "property name enclosed in dou…"
    )
    assert others[0].startswith("line 4, field 'id': 'a' was already used at")
    assert others[1:] == [*(f"line {n}, field 'text': empty" for n in range(6, 12)), "line 12, field 'text': empty)"]
    found, sentences = read(path, on_bad_row="skip")
    assert found == EXPECTED
    assert len(sentences) == 14
    with pytest.raises(InputError, match="holds no document, but for 12 that cannot be read"):
        read(jsonl(tmp_path / "d.jsonl", *bad), on_bad_row="skip")


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow(tmp_path, kind):
    table = pa.Table.from_pylist([{**row, "id": str(row["id"])} for row in GOOD])
    new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with new(tmp_path / "c.arrow", table.schema) as writer:
        writer.write_table(table)
    assert read(tmp_path / "c.arrow") == read(tmp_path) == EXPECTED
    (tmp_path / "c.arrow").write_bytes((tmp_path / "c.arrow").read_bytes()[:-300])
    with pytest.raises(InputError, match=r"c\.arrow: not a readable Arrow file"):
        read(tmp_path / "c.arrow")


def test_a_folder_of_save_to_disk(tmp_path):
    rows = [{**row, "id": str(row["id"])} for row in GOOD]
    data = Dataset.from_list(rows)
    data.save_to_disk(tmp_path / "one")
    DatasetDict(train=data, test=data).save_to_disk(tmp_path / "splits")
    assert read(tmp_path / "one") == read(tmp_path / "splits") == read(tmp_path / "splits" / "test") == EXPECTED
    data.select([1]).save_to_disk(tmp_path / "chosen")
    assert read(tmp_path / "chosen") == EXPECTED[1:]
    state = tmp_path / "one" / "state.json"
    state.write_text(state.read_text().replace("data-0", "../splits/test/data-0"))
    with pytest.raises(InputError, match="is outside of the folder"):
        read(tmp_path / "one")
    DatasetDict(test=data).save_to_disk(tmp_path / "other")
    with pytest.raises(InputError, match="has no split 'train'; give the folder of one: test"):
        read(tmp_path / "other")


def test_a_configuration_of_a_data_set(tmp_path):
    (tmp_path / "data" / "two").mkdir(parents=True)
    jsonl(tmp_path / "data" / "two" / "a.jsonl", {**GOOD[0]}, {**GOOD[1], "id": "7"})
    jsonl(tmp_path / "data" / "b.jsonl", {**GOOD[0], "id": "b"})
    files = {"one": "b.jsonl", "second": "two/a.jsonl"}
    card = "".join(f"- config_name: {name}\n  data_files: {file}\n" for name, file in files.items())
    (tmp_path / "data" / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    assert read(f"hf:{tmp_path / 'data'}:second:train") == EXPECTED
    assert [name for name, _, _ in read(f"hf:{tmp_path / 'data'}:one:train")] == ["b"]


def arrow(path, table, **options):
    with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return path


def test_arrow_that_would_unpack_to_more_than_is_there_is_refused(tmp_path):
    texts = {"id": ["a", "b"], "source": ["s", "s"], "text": ["one", "two"]}
    packed_batches = arrow(tmp_path / "p.arrow", pa.table(texts), compression="zstd")
    with pytest.raises(InputError, match=r"p\.arrow: its batches are packed"):
        read(packed_batches)
    numbered = pa.table({**texts, "text": pa.array(["one", "two"]).dictionary_encode()})
    with pytest.raises(InputError, match="columns of dictionaries are not read"):
        read(arrow(tmp_path / "d.arrow", numbered))
    views = pa.table({**texts, "text": pa.array(["one", "two"], pa.string_view())})
    with pytest.raises(InputError, match="expected text, got string_view"):
        read(arrow(tmp_path / "v.arrow", views))
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("n", pa.list_(pa.null(), 5_000_000))]))
    turns = pa.array([[{"role": "user", "content": "x", "n": None}]] * 2, kind)
    with pytest.raises(InputError, match="field 'messages': of nested values only lists and objects"):
        read(arrow(tmp_path / "n.arrow", pa.table({"id": ["a", "b"], "source": ["s", "s"], "messages": turns})))


def test_folders_that_are_called_like_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for year in (2024, 2025):
        (tmp_path / f"year={year}").mkdir()
        jsonl(tmp_path / f"year={year}" / "x.jsonl", {**GOOD[0], "id": str(year)})
    assert read("year=*/x.jsonl") == [("2024", "s", "one"), ("2025", "s", "one")]
    assert read("year=2024/*.jsonl", "of=year=2025/*.jsonl") == [("2024", "s", "one"), ("2025", "of", "one")]


def test_no_file_is_read_twice(tmp_path):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    one = jsonl(tmp_path / "data" / "y.jsonl", {"source": "s", "text": "y"})
    jsonl(tmp_path / "data" / "sub" / "x.jsonl", {"source": "s", "text": "x"})
    assert [text for _, _, text in read(tmp_path / "data" / "**")] == ["x", "y"]
    (tmp_path / "link.jsonl").symlink_to(one)
    for names in ((one, tmp_path / "data" / "*.jsonl"), (one, tmp_path / "link.jsonl")):
        with pytest.raises(InputError, match=r"is given twice$"):
            read(*names)
    with pytest.raises(InputError, match="is given twice, by itself and in the folder"):
        read(tmp_path / "data", f"own={one}")


def test_a_row_of_csv_with_a_line_that_is_no_text_is_rejected_as_a_whole(tmp_path):
    path = tmp_path / "c.csv"
    path.write_bytes(b'id,source,text\n1,s,"first\nsecond \xff line\nthird"\n2,s,two\n3,s,"a \xff"\n4,s,four\n')
    found, sentences = read(path, on_bad_row="skip")
    assert found == [("2", "s", "two"), ("4", "s", "four")]
    assert sentences == [
        f"{path}, line {line}: not valid UTF-8 (byte {byte} of the line)" for line, byte in ((3, 8), (6, 8))
    ]


def test_half_a_pair_that_is_null_is_said_to_be_null(tmp_path):
    path = jsonl(tmp_path / "c.jsonl", {"id": "a", "source": "s", "prompt": "x", "completion": None})
    with pytest.raises(InputError, match="field 'completion': null"):
        read(path)


def test_a_long_list_of_small_rows_is_read(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps([{"id": str(n), "source": "s", "text": "x"} for n in range(300_000)]))
    assert len(read(path)) == 300_000
