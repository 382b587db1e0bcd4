"""Parquet files that say one thing and are another: bounded memory, and a sentence."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataworth.storage.errors import InputError
from dataworth.tasks.corpus import pages, parquet
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.corpus.readers import read_documents

ROOT = Path(__file__).parents[3]
FOUR_GIGABYTES = 2**32

LIMITED = """
import resource, sys
import pyarrow.parquet
from dataworth.storage.errors import InputError
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.corpus.readers import read_documents
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
n_read = 0
try:
    for document in read_documents(CorpusConfig(files=[sys.argv[1]])):
        n_read += 1
except InputError as error:
    print(error)
print(n_read)
"""


def under_limit(path, n_bytes=FOUR_GIGABYTES):
    """What is said of a file, and how many of its documents are read, with some memory."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, path, str(n_bytes)],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *said, n_read = done.stdout.splitlines()
    assert len(said) <= 1
    return "".join(said), int(n_read)


def written(path, text, n_rows, **options):
    names = pa.array([str(number) for number in range(n_rows)])
    pq.write_table(pa.table({"id": names, "source": pa.array(["s"] * n_rows), "text": text}), path, **options)
    return path


def read(path, **fields):
    return list(read_documents(CorpusConfig(files=[str(path)], **fields)))


def refusal(path, **fields):
    with pytest.raises(InputError) as caught:
        read(path, **fields)
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("as_text", [True, False])
def test_a_text_that_many_rows_share_is_not_multiplied(tmp_path, as_text):
    """30 MB, 300 times: 9 GB by the batches of rows that Arrow would make of it."""
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array(["x" * 30_000_000]))
    path = written(tmp_path / "c.parquet", shared, 300, compression="zstd", store_schema=not as_text)
    assert path.stat().st_size < 2**17
    said, n_read = under_limit(path)
    assert "unpacks to more than 1,000 times as many, as no text does" in said
    assert 10 < n_read < 60


@pytest.mark.slow
def test_one_text_beyond_the_limit_is_refused_before_it_is_a_string(tmp_path):
    path = written(tmp_path / "c.parquet", pa.array(["one", "x" * 200_000_000, "two"]), 3, compression="zstd")
    said, _ = under_limit(path, 2**31)
    assert "field 'text': a text of 200,000,000 bytes, at most 33,554,432 are read" in said


@pytest.mark.slow
def test_a_page_that_unpacks_to_far_more_is_refused_before_it_is(tmp_path):
    path = written(tmp_path / "c.parquet", pa.array(["x" * 300_000_000]), 1, compression="zstd")
    said, n_read = under_limit(path, 2**31)
    assert "field 'text': a page of" in said
    assert "unpacks to 300,000,0" in said
    assert n_read == 0


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("packed", ["none", "snappy", "gzip", "zstd"])
@pytest.mark.parametrize("shared", [True, False])
def test_sizes_of_pages_are_those_that_the_writer_counts(tmp_path, version, packed, shared):
    texts = [f"{number % 7 if shared else number:09d}" * 50 for number in range(3000)]
    path = written(
        tmp_path / "c.parquet", pa.array(texts), 3000, compression=packed, data_page_version=version,
        data_page_size=2**14, row_group_size=1000, use_dictionary=shared, write_page_index=True,
    )  # fmt: skip
    with path.open("rb") as file, pq.ParquetFile(path) as found:
        for number in range(3):
            group = found.metadata.row_group(number)
            chunk = group.column(2)
            place, total = min(p for p in (chunk.dictionary_page_offset, chunk.data_page_offset) if p), 0
            end = place + chunk.total_compressed_size
            while place < end:
                n_header, unpacked, n_packed, n_values = pages._header(file, place)
                assert 0 < n_values <= 1000
                place, total = place + n_header + n_packed, total + n_header + unpacked
            assert (place, total) == (end, chunk.total_uncompressed_size)
            assert 450 <= pages.largest_page(file, group, ["text"], "c") <= chunk.total_uncompressed_size
    assert [document.text for document in read(path)] == texts


def test_pages_are_looked_at_in_the_files_own_words(tmp_path, monkeypatch):
    path = written(tmp_path / "c.parquet", pa.array(["one two"] * 300), 300)
    monkeypatch.setattr(pages, "MAX_PAGE_VALUES", 200)
    assert "field 'id': a page of" in refusal(path)
    monkeypatch.setattr(pages, "MAX_PAGE_VALUES", 300)
    assert len(read(path)) == 300
    monkeypatch.setattr(pages, "MAX_FOOTER_BYTES", 100)
    assert "its footer has" in refusal(path)


def test_columns_that_grow_when_they_are_read_are_refused(tmp_path):
    for text, what in (
        (pa.array([["x"]]), "list<"),
        (pa.array([{"a": 1}]), "struct<"),
        (pa.array([None], pa.binary(100_000)), "fixed_size_binary"),
    ):
        said = refusal(written(tmp_path / "c.parquet", text, 1))
        assert f"c.parquet, field 'text': expected text, got {what}" in said


def test_texts_that_are_dictionaries_are_read(tmp_path):
    text = pa.array(["one", "two", "one"]).dictionary_encode()
    assert [each.text for each in read(written(tmp_path / "c.parquet", text, 3))] == ["one", "two", "one"]


def test_no_memory_is_a_sentence(tmp_path, monkeypatch):
    path = written(tmp_path / "c.parquet", pa.array(["one"]), 1)

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(parquet, "largest_page", full)
    assert "a group of its rows does not fit into memory" in refusal(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x15", b"\x15\x00\x15", b"\xff" * 64, b"\x1c" * 64, b"\x15\x01\x15\x02\x00"]
)
def test_what_is_no_header_of_a_page_is_left_to_the_reader(tmp_path, content):
    (tmp_path / "c").write_bytes(content)
    with (tmp_path / "c").open("rb") as file:
        assert pages._header(file, 0) is None
