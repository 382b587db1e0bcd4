"""Data sets by `hf:`: what a card says is not believed, nothing elsewhere is read, and a bomb is a sentence."""

import gzip
import io
import json
import os
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataworth.storage.errors import InputError
from dataworth.tasks.corpus import data_sets
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.corpus.readers import read_documents

ROW = {"id": "a", "source": "s", "text": "one two"}


def read(folder):
    return [document.id for document in read_documents(CorpusConfig(files=[f"hf:{folder}"]))]


def refusal(folder):
    with pytest.raises(InputError) as caught:
        read(folder)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    (root / "data").mkdir(parents=True)
    (root / "data" / "a.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "secret.jsonl").write_text(json.dumps({**ROW, "id": "secret"}) + "\n")
    return root


def card(folder, files):
    settings = json.dumps([{"config_name": "default", "data_files": files}])
    (folder / "README.md").write_text(f"---\nconfigs: {settings}\n---\nWords.\n")


def test_a_card_that_names_its_own_files_is_followed(folder):
    (folder / "other.jsonl").write_text(json.dumps({**ROW, "id": "b"}) + "\n")
    card(folder, [{"split": "train", "path": ["data/*.jsonl"]}])
    assert read(folder) == ["a"]


@pytest.mark.parametrize(
    "files",
    [
        "../secret.jsonl",
        "data/../../secret.jsonl",
        ["data/a.jsonl", "/etc/hostname"],
        [{"split": "train", "path": ["{folder}/../secret.jsonl"]}],
        "http://127.0.0.1:9/a.jsonl",
        "zip://a.jsonl::data/a.zip",
        "file:///etc/passwd",
        "~/secret.jsonl",
    ],
)
@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
def test_a_card_does_not_lead_out_of_its_folder(folder, files, name, monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("an address was asked"))
    files = json.loads(json.dumps(files).replace("{folder}", str(folder)))
    card(folder, files)
    if name != "README.md":
        (folder / name).write_text((folder / "README.md").read_text().split("---\n")[1])
        (folder / "README.md").unlink()
    assert f"hf:{folder}: its {name} names data_files " in refusal(folder)


def test_links_out_of_the_folder_are_refused(folder):
    (folder / "data" / "b.jsonl").symlink_to("../../secret.jsonl")
    assert f"{folder}/data/b.jsonl is outside of the data set" in refusal(folder)


def test_a_card_that_grows_when_it_is_read_is_refused(folder):
    levels = "".join(
        f"{letter}: &{letter} [{', '.join([f'*{before}'] * 9)}]\n"
        for before, letter in zip("abcdefgh", "bcdefghi", strict=True)
    )
    (folder / "README.md").write_text(f"---\na: &a [x]\n{levels}configs: *i\n---\n")
    assert "its README.md repeats parts of itself" in refusal(folder)
    (folder / "README.md").write_text("---\n" + "x: y\n" * 300_000 + "---\n")
    assert "its README.md is longer than 1,048,576 bytes" in refusal(folder)
    (folder / "README.md").unlink()
    os.mkfifo(folder / "README.md")
    assert "its README.md: is a pipe, expected a plain file" in refusal(folder)


def test_files_that_the_hub_says_are_elsewhere_are_refused():
    files = {"train": ["hf://datasets/some/texts@1/a.jsonl", "https://example.invalid/b.jsonl"]}
    builder = SimpleNamespace(config=SimpleNamespace(data_files=files))
    with pytest.raises(InputError, match=r"hf:x: https://example\.invalid/b\.jsonl is outside of the data set"):
        data_sets._refuse_files_elsewhere(builder, "some/texts", "hf:x")
    files["train"].pop()
    assert data_sets._refuse_files_elsewhere(builder, "some/texts", "hf:x") == 0


def test_a_table_that_unpacks_to_more_than_memory_is_refused(folder, monkeypatch):
    """A text of 40 MB that a thousand rows share: some kilobytes on disk."""
    (folder / "data" / "a.jsonl").unlink()
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * 40_000_000]))
    names = pa.array([str(number) for number in range(1000)])
    table = pa.table({"id": names, "source": names, "text": shared})
    pq.write_table(table, folder / "data" / "a.parquet", compression="zstd")
    assert (folder / "data" / "a.parquet").stat().st_size < 2**20
    monkeypatch.setattr(data_sets, "MAX_MEMORY", 2**30)
    assert "the data set cannot be loaded (" in refusal(folder)


def test_a_packed_file_that_unpacks_to_far_more_is_refused(folder, monkeypatch):
    (folder / "data" / "a.jsonl").unlink()
    buffer = io.BytesIO()
    with gzip.open(buffer, "wb") as file:
        file.write(json.dumps({**ROW, "text": "x" * 20_000_000}).encode() + b"\n")
    (folder / "data" / "a.jsonl.gz").write_bytes(buffer.getvalue())
    monkeypatch.setattr(data_sets, "FREE_BYTES", 2**20)
    assert "a file unpacks to far more than is on disk" in refusal(folder)
    monkeypatch.setattr(data_sets, "FREE_BYTES", 2**30)
    assert read(folder) == ["a"]
