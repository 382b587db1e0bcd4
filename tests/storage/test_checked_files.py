"""Files are checked as they are read: what is read of them, no more, and whatever its damage."""

import hashlib
import json
import random

import numpy as np
import pytest

from dataworth.storage.checked_files import CheckedFiles
from dataworth.storage.checksums import (
    BLOCK_BYTES,
    CheckedFile,
    FileChecksum,
    file_checksum,
    is_sealed,
    sealed,
    unsealed,
)
from dataworth.storage.corpus import CorpusStore, TokenisedDocument
from dataworth.storage.errors import InputError, StoreDamagedError
from dataworth.storage.locations import location_of
from dataworth.storage.verification import verified


class Counted:
    """A file that counts the bytes that are read of it."""

    def __init__(self, file, read):
        self._file, self._read = file, read

    def __getattr__(self, name):
        return getattr(self._file, name)

    def readinto(self, buffer):
        self._read.append(self._file.readinto(buffer))
        return self._read[-1]


def document(number: int, text: str) -> TokenisedDocument:
    return TokenisedDocument(f"d{number}", "s", text, np.arange(2, dtype=np.int32), ((0, 2, 0, 0, 1),))


@pytest.mark.parametrize("n_bytes", [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, 40 * BLOCK_BYTES + 7])
def test_a_file_reads_as_it_is_and_every_flipped_bit_is_seen(tmp_path, n_bytes):
    content = np.random.default_rng(n_bytes).bytes(n_bytes)
    path = location_of(tmp_path / "f")
    path.write_bytes(content)
    expected = FileChecksum(**file_checksum(path))
    generator = random.Random(n_bytes)
    with CheckedFile(path.opened(), expected, lambda: StoreDamagedError("f")) as file:
        assert file.read() == content
        for _ in range(20):
            start = generator.randrange(n_bytes + 1)
            length = generator.randrange(3 * BLOCK_BYTES)
            file.seek(start)
            assert file.read(length) == content[start : start + length]
    for _ in range(5 if n_bytes else 0):
        place = generator.randrange(n_bytes)
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with CheckedFile(path.opened(), expected, lambda: StoreDamagedError("f")) as file:
            file.seek(place)
            with pytest.raises(StoreDamagedError):
                file.read(1)
    path.write_bytes(content + b"x")
    with pytest.raises(StoreDamagedError):
        CheckedFile(path.opened(), expected, lambda: StoreDamagedError("f"))


def test_a_record_sees_every_flipped_byte_of_its_own():
    record = sealed({"a": [1, 2.5, None], "b": {"c": "d"}, "files": {}})
    text = json.dumps(record).encode()
    assert is_sealed(json.loads(text))
    assert unsealed(record) == {"a": [1, 2.5, None], "b": {"c": "d"}, "files": {}}
    for place in range(len(text)):
        for bits in (1, 4, 16, 3):
            damaged = bytearray(text)
            damaged[place] ^= bits
            try:
                found = json.loads(bytes(damaged))
            except ValueError:
                continue
            assert not is_sealed(found) or found == record
    assert is_sealed({"schema_version": 1, "a": 2})
    assert not is_sealed({"schema_version": 2, "a": 2})


def test_of_a_few_documents_only_their_row_groups_are_read(place, monkeypatch):
    monkeypatch.setattr("dataworth.storage.corpus.DOCUMENTS_PER_ROW_GROUP", 8)
    generator = np.random.default_rng(0)
    texts = [generator.bytes(50_000).hex() if number < 72 else "a" for number in range(80)]
    store = CorpusStore.open(CorpusStore.write(place, map(document, range(80), texts), {}))
    read, kind = [], type(store.path)
    opened = kind.opened
    monkeypatch.setattr(kind, "opened", lambda self: Counted(opened(self), read))
    found = list(store.documents([17, 1, 17, 23]))
    assert [row["document_id"] for row in found] == ["d17", "d1", "d17", "d23"]
    assert [row["text"] for row in found] == [texts[n] for n in (17, 1, 17, 23)]
    whole = (store.path / "documents.parquet").n_bytes()
    assert whole > 7e6
    assert 0 < sum(read) < 0.75 * whole  # of ten row groups two, each in blocks of a megabyte
    assert [row["document_id"] for row in store.documents()] == [f"d{number}" for number in range(80)]
    assert list(store.documents([])) == []


def test_long_documents_make_smaller_row_groups(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr("dataworth.storage.corpus.CHARACTERS_PER_ROW_GROUP", 100)
    ref = CorpusStore.write(tmp_path, (document(number, "x" * 60) for number in range(6)), {})
    assert pq.ParquetFile(ref.path / "documents.parquet").num_row_groups == 4  # three of two, and the empty end


def early(store: CorpusStore) -> None:
    """As dataworth left a store at schema version 1."""
    known = {name: value for name, value in unsealed(store.manifest).items() if name != "files"}
    tables = {
        name: hashlib.sha256((store.path / name).read_bytes()).hexdigest()
        for name in store.path.files()
        if name.endswith(".parquet")
    }
    manifest = {**known, "schema_version": 1, "tables": tables}
    (store.path / "manifest.json").write_whole(json.dumps(manifest, indent=1, sort_keys=True).encode())


def test_a_store_of_schema_version_1_is_read_and_checked_as_far_as_it_can_be(place):
    ref = CorpusStore.write(place / "corpora", map(document, range(3), ["a", "b", "c"]), {})
    early(CorpusStore.open(ref))
    store = CorpusStore.open(ref)
    assert [row["text"] for row in store.documents()] == ["a", "b", "c"]
    assert store.tokens(2).tolist() == [0, 1]
    assert not [entry for entry in verified(place) if entry.damage]
    for name in ("documents.parquet", "windows.parquet", "tokens.bin"):
        whole = (ref.path / name).read_bytes()
        (ref.path / name).write_whole(whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
        assert [name in entry.damage for entry in verified(place) if entry.damage] == [True]
        if name == "documents.parquet":
            with pytest.raises(StoreDamagedError, match=r"documents\.parquet: its bytes changed: remove"):
                list(CorpusStore.open(ref).documents())
        (ref.path / name).write_whole(whole)


def test_what_a_library_says_of_damage_is_one_sentence(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 or not")
    files = CheckedFiles(location_of(tmp_path), None, {}, "make it again", InputError)
    with pytest.raises(InputError, match=r"t\.parquet: cannot be read \(.*\): make it again"):
        files.table("t.parquet")
    with pytest.raises(InputError, match=r"gone\.parquet: is gone: make it again"):
        files.table("gone.parquet")
