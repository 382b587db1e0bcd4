"""Folders of rows and of text, and the containers that are neither."""

import bz2
import gzip
import io
import json
import lzma
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from dataworth.storage.errors import InputError
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.containers import CONTAINERS
from dataworth.tasks.corpus.packed import PACKINGS
from dataworth.tasks.corpus.readers import read_documents, read_queries

ROOT = Path(__file__).parents[3]


def read(path, **fields):
    return [(d.id, d.source, d.text) for d in read_documents(CorpusConfig(files=[str(path)], **fields))]


def refusal(path, **fields):
    with pytest.raises(InputError) as caught:
        read(path, **fields)
    assert str(caught.value).isprintable()
    return str(caught.value)


def lines(*ids):
    return "".join(
        json.dumps({"id": name, "source": f"of {name}", "text": f"text {name}", "year": 1}) + "\n" for name in ids
    )


@pytest.fixture
def shards(tmp_path) -> Path:
    """Five files of rows, in two folders."""
    root = tmp_path / "shards"
    (root / "more").mkdir(parents=True)
    (root / "train-00001.JSONL").write_text(lines("c"))
    (root / "train-00000.jsonl").write_text(lines("a", "b"))
    (root / "train-00002.ndjson").write_text(lines("d"))
    (root / ".hidden.gz").write_text("not read")
    pd.read_json(io.StringIO(lines("f")), lines=True).to_parquet(root / "more" / "1.parquet")
    pd.read_json(io.StringIO(lines("e")), lines=True).to_csv(root / "more" / "0.csv", index=False)
    return root


def test_rows_of_a_folder_are_read_in_the_order_of_names(shards):
    assert read(shards) == [(name, f"of {name}", f"text {name}") for name in "abcdef"]
    kept = read_documents(CorpusConfig(files=[str(shards)], fields=["year"]))
    assert [document.fields["year"] for document in kept] == [1, 1, 1, 1, "1", 1]  # a cell of CSV is text


def test_a_folder_of_rows_may_hold_classes(shards):
    config = CorpusConfig(files=[str(shards)], label="source")
    assert [document.label for document in read_documents(config, labelled=True)] == [f"of {name}" for name in "abcdef"]


def test_ids_are_unique_over_all_shards(shards):
    (shards / "more" / "2.jsonl").write_text(lines("b"))
    assert refusal(shards) == (
        f"{shards}/more/2.jsonl, line 1, field 'id': 'b' was already used at {shards}/train-00000.jsonl, line 2"
    )


@pytest.mark.parametrize("name", ["README.md", "more/notes.txt", "_SUCCESS"])
def test_text_beside_rows_is_refused(shards, name):
    (shards / name).write_text("words")
    said = refusal(shards)
    assert f"a folder holds either texts, as {name} is one, or files of rows, as train-00000.jsonl is" in said


def test_source_code_is_text(tmp_path):
    root = tmp_path / "code"
    names = [
        "Makefile",
        "a.py",
        "b.md",
        "c.rst",
        "d.html",
        "e.toml",
        "f.yaml",
        "g.xml",
        "h.c",
        "i.tex",
        "j.log",
        "k.TXT",
    ]
    root.mkdir()
    for name in names:
        (root / name).write_text(f'{{"not": "rows"}}\nof {name}\n')
    assert [(name, text.splitlines()[1]) for name, _, text in read(root)] == [
        (name, f"of {name}") for name in sorted(names)
    ]


@pytest.mark.parametrize("name", ["data.csv", "package.json", "notebook.ipynb", "table.tsv"])
def test_data_beside_text_is_refused_with_a_way_out(tmp_path, name):
    (tmp_path / "a.py").write_text("print()")
    (tmp_path / name).write_text("{}")
    assert "name it .txt" in refusal(tmp_path) or "is named .txt" in refusal(tmp_path) or name.endswith("tsv")
    (tmp_path / name).rename(tmp_path / f"{name}.txt")
    assert [row[0] for row in read(tmp_path)] == ["a.py", f"{name}.txt"]


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_containers_are_refused_by_what_they_are(tmp_path, suffix):
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "a.txt").write_text("words")
    packed = f"train-0.{'tar' if suffix in PACKINGS else 'jsonl'}{suffix.upper()}"  # packed rows are read
    for name in (f"train-0{suffix}", packed):
        (root / name).write_text("words")
        what, remedy = CONTAINERS[suffix]
        assert refusal(root) == refusal(root / name) == f"{root / name}: is {what}, which is not read; {remedy}"
        (root / name).unlink()


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "words")
    return buffer.getvalue()


def table():
    buffer = io.BytesIO()
    pd.DataFrame({"text": ["words"]}).to_parquet(buffer)
    return buffer.getvalue()


CONTENTS = {
    "gzip": (gzip.compress(b"words"), "packed by gzip"),
    "bzip2": (bz2.compress(b"words"), "packed by bzip2"),
    "xz": (lzma.compress(b"words"), "packed by xz"),
    "zstd": (b"\x28\xb5\x2f\xfd words", "packed by zstd"),
    "zip": (archive(), "a zip archive"),
    "parquet": (table(), "Parquet"),
    "pdf": (b"%PDF-1.4\n1 0 obj\n", "a PDF"),
    "utf-16": ("words".encode("utf-16"), "text in UTF-16"),
    "numbers": (bytes(range(256)) * 4, "binary (a NUL byte)"),
}


@pytest.mark.parametrize(("content", "what"), CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", ["c.jsonl", "c.JSONL", "c.csv", "c.ndjson", "text/c.txt", "text/c"])
def test_content_that_is_no_text_is_refused_whatever_its_name(tmp_path, content, what, name):
    (tmp_path / "text").mkdir()
    path = tmp_path / name
    path.write_bytes(content)
    given = path.parent if name.startswith("text/") else path
    assert refusal(given).startswith(f"{path}: its content is {what}")


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "text/c.txt"])
def test_a_nul_byte_far_behind_is_refused_too(tmp_path, name):
    (tmp_path / "text").mkdir()
    path = tmp_path / name
    fine = {"c.jsonl": lines("a"), "c.csv": "id,source,text\na,s,x\n", "text/c.txt": "words\n"}[name].encode()
    path.write_bytes(fine + b"\n" * 600 + b"\x00\n")
    given = path.parent if name.startswith("text/") else path
    number = fine.count(b"\n") + 601
    assert refusal(given) == f"{path}, line {number}: holds a NUL byte, which no text does"


@pytest.mark.parametrize("text", ["PAR1 is a word", "BZh is another", "7z or so", "\x1b[1mbold\x1b[0m"])
def test_a_text_may_begin_with_the_letters_of_a_container(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert read(tmp_path) == [("a.txt", tmp_path.name, text)]


def test_rows_under_a_name_of_text_are_not_taken_for_it(tmp_path):
    (tmp_path / "part-00000").write_text(lines("a", "b"))
    assert refusal(tmp_path).endswith(
        "part-00000: holds rows (line 1 is a JSON object with the field 'text'); name it .jsonl"
    )
    (tmp_path / "part-00000").write_text('{"body": "x"}\n')
    assert len(read(tmp_path)) == 1
    assert "with the field 'body'" in refusal(tmp_path, text="body")


MEMORY = """
import sys
import pandas, pyarrow.parquet
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.corpus.readers import read_documents
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
list(read_documents(CorpusConfig(files=[sys.argv[1]])))
before = peak()
total = sum(len(document.text) for document in read_documents(CorpusConfig(files=[sys.argv[2]])))
print(total, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_shard_is_not_held_in_memory(tmp_path, kind):
    """384 MB in one file, and for Parquet in one group of rows, are read in a small part of that."""
    for name, n_rows in (("small", 2), ("big", 48_000)):
        (tmp_path / name).mkdir()
        path = tmp_path / name / f"a.{kind}"
        rows = pd.DataFrame(
            {"id": range(n_rows), "source": "s", "text": [f"{number:064d}" * 125 for number in range(n_rows)]}
        )
        rows["id"] = rows["id"].astype(str)
        if kind == "parquet":
            rows.to_parquet(path, compression=None, row_group_size=n_rows, use_dictionary=False)
        elif kind == "csv":
            rows.to_csv(path, index=False)
        else:
            rows.to_json(path, orient="records", lines=True)
        del rows
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "small", tmp_path / "big"],
        capture_output=True, text=True, cwd=ROOT, check=False,
        # Arrow's own allocator keeps what was freed, as much as it finds: 100 MB where 18 are in use.
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    total, more = map(int, done.stdout.split())
    assert total == 48_000 * 8_000
    assert more < total / 4


def test_a_line_or_text_that_never_ends_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dataworth.tasks.corpus.rows.MAX_LINE_BYTES", 1000)
    monkeypatch.setattr("dataworth.tasks.corpus.values.MAX_TEXT_BYTES", 1000)
    (tmp_path / "c.jsonl").write_text(lines("a") + json.dumps({"id": "b", "source": "s", "text": "x" * 1000}))
    assert "c.jsonl, line 2: longer than 1,000 bytes" in refusal(tmp_path / "c.jsonl")
    (tmp_path / "c.csv").write_text('id,source,text\na,s,"' + "x\n" * 1000)
    monkeypatch.setattr("dataworth.tasks.corpus.rows.MAX_ROW_BYTES", 1000)
    assert "c.csv, line 499: the row is longer than 1,000 bytes" in refusal(tmp_path / "c.csv")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x" * 1000)
    assert len(read(tmp_path / "text")) == 1
    (tmp_path / "text" / "a.txt").write_text("x" * 1001)
    said = refusal(tmp_path / "text")
    assert "a.txt: longer than 1,000 bytes, each of which takes a tokenizer 300 bytes of memory; cut it" in said
    monkeypatch.setattr("dataworth.tasks.corpus.rows.MAX_LINE_BYTES", 2000)
    assert "c.jsonl, line 2, field 'text': longer than 1,000 bytes" in refusal(
        write(tmp_path / "c.jsonl", lines("a") + json.dumps({"id": "b", "source": "s", "text": "x" * 1001}))
    )


def write(path, text):
    path.write_text(text)
    return path


def test_a_folder_of_the_hubs_cache_is_read_through_its_links(tmp_path):
    repository = tmp_path / "datasets--some--texts"
    folder = repository / "snapshots" / "0123abcd"
    for place in (folder / "more", repository / "blobs"):
        place.mkdir(parents=True)
    write(repository / "blobs" / "one", lines("a"))
    write(repository / "blobs" / "two", lines("b"))
    (folder / "1.jsonl").symlink_to("../../blobs/one")
    (folder / "more" / "2.jsonl").symlink_to("../../../blobs/two")
    assert [name for name, *_ in read(folder)] == ["a", "b"]
    (tmp_path / "link").symlink_to(folder)
    assert [name for name, *_ in read(tmp_path / "link")] == ["a", "b"]
    write(tmp_path / "secret.jsonl", lines("c"))
    (folder / "3.jsonl").symlink_to("../../../secret.jsonl")
    assert refusal(folder).startswith(f"{folder}/3.jsonl: links to what is outside of the folder")
    (folder / "3.jsonl").unlink()
    (folder / "loop").symlink_to(folder)
    assert refusal(folder) == f"{folder}/loop: not a plain file; a folder of a corpus holds plain files only"


def test_a_link_within_the_folder_is_read(tmp_path):
    root = tmp_path / "texts"
    root.mkdir()
    write(root / "a.txt", "words")
    (root / "b.txt").symlink_to("a.txt")
    assert [name for name, *_ in read(root)] == ["a.txt", "b.txt"]


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.parquet", "text/c.txt", "rows/c.jsonl", "rows/c.parquet"])
@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_what_is_no_plain_file_is_neither_waited_for_nor_read(tmp_path, name, kind, monkeypatch):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    monkeypatch.chdir(path.parent)  # names of sockets are short
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as there:
            there.bind(path.name)
    said = refusal(path.parent if "/" in name else path)
    assert said.startswith(f"{path}: ")
    assert any(part in said for part in (f"is a {kind}, expected a plain file", "not a plain file", "links to what is"))
    (path.parent / "q.jsonl").symlink_to(path)
    with pytest.raises(InputError, match=f"q.jsonl: is a {kind}, expected a plain file"):
        list(read_queries(QueriesConfig(file=str(path.parent / "q.jsonl"))))
