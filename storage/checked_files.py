"""The files of a folder, checked while they are read; any damage is reported in one sentence that names the file."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ArrowException

from dataworth.storage.checksums import BLOCK_BYTES, CheckedFile, FileChecksum
from dataworth.storage.errors import DataworthError, StoreDamagedError
from dataworth.storage.locations import location_of
from dataworth.storage.place import Location

__all__ = ["CheckedBytes", "CheckedFiles"]

HASH_BYTES = 2**22
MAX_REASON = 200

# (place, state) of files of schema version 1 whose SHA-256 was compared in this process.
_HASHED: set[tuple[Any, ...]] = set()


class CheckedBytes:
    """The bytes of a file, mapped; each block is checked when it is first asked for.

    Args:
        content: (n_bytes,) uint8.
        expected: what it must be; None where that is not known.
        damaged: what is raised where it is not.
    """

    def __init__(self, content: np.ndarray, expected: FileChecksum | None, damaged: Exception) -> None:
        self._content, self._expected, self._damaged = content, expected, damaged
        self._seen = np.full(-(-len(content) // BLOCK_BYTES), expected is None)

    def __len__(self) -> int:
        return len(self._content)

    def __getitem__(self, wanted: slice) -> np.ndarray:
        """(n,) uint8 bytes from start to stop."""
        first, end = wanted.start // BLOCK_BYTES, -(-wanted.stop // BLOCK_BYTES)
        if self._expected is not None and not self._seen[first:end].all():
            for block in first + np.flatnonzero(~self._seen[first:end]):
                content = self._content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
                if not self._expected.matches(content, int(block)):
                    raise self._damaged
                self._seen[block] = True
        return self._content[wanted]


class CheckedFiles:
    """The files of a folder by their relative names.

    Args:
        root: the folder.
        expected: what each file must be; None where the folder was written before that was recorded.
        sha256: of some files, all that early folders have.
        remedy: what to do about damage.
        refusal: the kind of error that says so.
    """

    def __init__(
        self,
        root: Location,
        expected: Mapping[str, Mapping[str, Any]] | None,
        sha256: Mapping[str, str],
        remedy: str,
        refusal: type[DataworthError] = StoreDamagedError,
    ) -> None:
        self.root, self._sha256, self._remedy, self._refusal = root, sha256, remedy, refusal
        self.expected = None if expected is None else {name: FileChecksum(**known) for name, known in expected.items()}

    def has(self, name: str) -> bool:
        """Whether this file, or files below that name, belong to the folder."""
        if self.expected is None:
            return (self.root / name).is_file() or (self.root / name).is_dir()
        return name in self.expected or any(known.startswith(f"{name}/") for known in self.expected)

    def damaged(self, name: str, reason: str = "its bytes changed") -> DataworthError:
        """The error that says in one sentence what is wrong with a file."""
        return self._refusal(f"{self.root / name}: {reason}: {self._remedy}")

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Turn whatever error a library raises on a damaged file in the block into one sentence."""
        try:
            yield
        except DataworthError:
            raise
        except FileNotFoundError:
            raise self.damaged(name, "is gone") from None
        except (OSError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, ArrowException) as error:
            system = error.strerror if isinstance(error, OSError) else None
            reason = system or " ".join(str(error).split())[:MAX_REASON] or type(error).__name__
            raise self.damaged(name, f"cannot be read ({reason})") from error

    def _known(self, name: str) -> FileChecksum | None:
        if self.expected is None:
            return None
        if name not in self.expected:
            raise self.damaged(name, "does not belong to what was written")
        return self.expected[name]

    def check(self, name: str) -> None:
        """Read the whole file, in constant memory.

        Raises:
            StoreDamagedError: it is not what was written.
        """
        with self.reading(name):
            expected = self._known(name)
            if expected is None:
                self._check_sha256(name)
                return
            with self._opened(name, expected) as file:
                while file.read(HASH_BYTES):
                    pass

    def check_all(self, below: str = "") -> None:
        """`check` every file that is listed; if a folder is named, only those below it."""
        for name in self._sha256 if self.expected is None else self.expected:
            if not below or name.startswith(f"{below}/"):
                self.check(name)

    def content(self, name: str) -> bytes:
        """All bytes of a file.

        Raises:
            StoreDamagedError: they are not those that were written.
        """
        with self.reading(name):
            content = (self.root / name).read_bytes()
            expected = self._known(name)
            if expected is not None and not expected.is_of(content):
                raise self.damaged(name)
            return content

    def mapped(self, name: str) -> CheckedBytes:
        """A file mapped to memory, for reading parts of it.

        Raises:
            StoreDamagedError: its length changed; and later, what is read of it.
        """
        with self.reading(name):
            expected = self._known(name)
            with (self.root / name).as_file() as path:
                content = location_of(path).mapped()
            if expected is not None and len(content) != expected.n_bytes:
                raise self.damaged(name)
            return CheckedBytes(content, expected, self.damaged(name))

    def table(
        self, name: str, columns: Sequence[str] | None = None, rows: np.ndarray | Sequence[int] | None = None
    ) -> pa.Table:
        """A Parquet table.

        Args:
            name: of the file.
            columns: those wanted; None: all.
            rows: numbers of the rows wanted, in their order; None: all. Row groups without any are not read.

        Raises:
            StoreDamagedError: what is read of it is not what was written.
        """
        with self._parquet(name) as file:
            wanted = None if columns is None else list(columns)
            return file.read(wanted) if rows is None else _rows(file, wanted, np.asarray(rows, np.int64))

    def row_groups(self, name: str) -> Iterator[pa.Table]:
        """A Parquet table one row group after another, so that only one is in memory."""
        with self._parquet(name) as file:
            for number in range(file.num_row_groups):
                yield file.read_row_group(number)

    def _opened(self, name: str, expected: FileChecksum) -> CheckedFile:
        return CheckedFile((self.root / name).opened(), expected, lambda: self.damaged(name))

    @contextmanager
    def _parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        with self.reading(name):
            expected = self._known(name)
            if expected is not None:
                with self._opened(name, expected) as source, pq.ParquetFile(source, pre_buffer=True) as file:
                    yield file
                return
            self._check_sha256(name)
            place = (self.root / name).table_source()
            with pq.ParquetFile(place, pre_buffer=True, page_checksum_verification=True) as file:
                yield file

    def _check_sha256(self, name: str) -> None:
        """Compare the hash of a file, if it has one; once in a process while the file stays as it is."""
        place = self.root / name
        if name not in self._sha256:
            return
        key = (str(place), place.state())
        if key in _HASHED:
            return
        digest = hashlib.sha256()
        with place.opened() as file:
            while block := file.read(HASH_BYTES):
                digest.update(block)
        if digest.hexdigest() != self._sha256[name]:
            raise self.damaged(name)
        _HASHED.add(key)


def _rows(file: pq.ParquetFile, columns: list[str] | None, rows: np.ndarray) -> pa.Table:
    """Some rows, in their order, one row group in memory at a time."""
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    ends = np.cumsum(sizes, dtype=np.int64)
    group_of = np.searchsorted(ends, rows, side="right")
    parts = [file.schema_arrow.empty_table().select(columns or file.schema_arrow.names)]
    places = []
    for group in np.unique(group_of).tolist():
        places.append(np.flatnonzero(group_of == group))
        within = rows[places[-1]] - (ends[group] - sizes[group])
        parts.append(file.read_row_group(group, columns).take(pa.array(within)))
    order = np.argsort(np.concatenate([np.empty(0, np.int64), *places]), kind="stable")
    return pa.concat_tables(parts).take(pa.array(order))
