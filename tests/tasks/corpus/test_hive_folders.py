"""Folders partitioned as Hive does it, written by Arrow: what the folders' names say are fields of the rows."""

import json

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from dataworth.storage.errors import InputError
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.corpus.readers import read_documents

ROWS = [
    {"id": "1", "source": "news/daily", "year": 2024, "text": "one and two"},
    {"id": "2", "source": "letters", "year": 2025, "text": "three and four"},
    {"id": "3", "source": "letters", "year": 2024, "text": "five and six"},
]


def read(folder, **settings):
    return list(read_documents(CorpusConfig(files=[str(folder)], **settings)))


@pytest.mark.parametrize("kind", ["parquet", "csv", "feather"])
def test_fields_by_folder(tmp_path, kind):
    schema = pa.schema([("source", pa.string()), ("year", pa.int64())])
    ds.write_dataset(
        pa.Table.from_pylist(ROWS), tmp_path, format=kind, partitioning=ds.partitioning(schema, flavor="hive")
    )
    if kind == "feather":
        for path in list(tmp_path.rglob("*.feather")):
            path.rename(path.with_suffix(".arrow"))
    found = {each.id: (each.source, each.fields, each.text) for each in read(tmp_path, fields=["year"])}
    assert found == {row["id"]: (row["source"], {"year": str(row["year"])}, row["text"]) for row in ROWS}
    assert {each.source for each in read(tmp_path, source="year")} == {"2024", "2025"}


def test_rows_of_objects_and_texts(tmp_path):
    rows, texts = tmp_path / "rows", tmp_path / "texts"
    for folder in (rows / "source=a", rows / "source=b", texts / "source=c"):
        folder.mkdir(parents=True)
    (rows / "source=a" / "x.jsonl").write_text(json.dumps({"id": "1", "text": "one two"}))
    (rows / "source=b" / "x.jsonl").write_text(json.dumps({"id": "2", "text": "one two", "source": "b"}))
    (texts / "source=c" / "x.txt").write_text("one two")
    assert [each.source for each in read(rows)] == ["a", "b"]
    assert [each.source for each in read(texts)] == ["c"]


def test_a_null_is_no_name(tmp_path):
    folder = tmp_path / "source=__HIVE_DEFAULT_PARTITION__"
    folder.mkdir()
    (folder / "x.jsonl").write_text(json.dumps({"id": "1", "text": "one two"}))
    with pytest.raises(InputError, match="field 'source': missing"):
        read(tmp_path)


def test_a_row_that_says_otherwise_is_refused(tmp_path):
    folder = tmp_path / "source=a"
    folder.mkdir()
    (folder / "x.jsonl").write_text(json.dumps({"id": "1", "text": "one two", "source": "b"}))
    with pytest.raises(InputError, match="line 1, field 'source': is 'b', and its folder says 'a'"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("folder", "own"),
    [("year=01", 1), ("year=true", True), ("year=2024", None), ("run=3", "other"), ("year=1.50", 1.5)],
)
def test_what_is_the_same_or_not_asked_for_is_no_contradiction(tmp_path, folder, own):
    (tmp_path / folder).mkdir()
    name = folder.partition("=")[0]
    row = {"id": "1", "text": "one two", "source": "a", "year": 7, name: own}
    (tmp_path / folder / "x.jsonl").write_text(json.dumps(row))
    (found,) = read(tmp_path, fields=["year"])
    assert found.source == "a"


def test_contradictions_may_be_skipped_and_a_given_source_counts(tmp_path):
    folder = tmp_path / "source=a"
    folder.mkdir()
    rows = [{"id": "1", "text": "one two", "source": "b"}, {"id": "2", "text": "three", "source": "a"}]
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [each.id for each in read(tmp_path, on_bad_row="skip")] == ["2"]
    config = CorpusConfig(files=[f"given={tmp_path}"])
    assert [each.source for each in read_documents(config)] == ["given", "given"]
