"""Locations on an S3-like object store.

An object appears whole or not at all, so one put is one write; a folder does not, so the manifest goes up last, and
comes down first.
"""

import io
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from dataworth.storage.errors import InputError, StoreBusyError, StoreUnreachableError
from dataworth.storage.place import Location
from dataworth.storage.s3.client import client, translate_errors
from dataworth.storage.s3.leases import check_leases, lease

__all__ = ["ObjectLocation"]

MANIFEST = "manifest.json"
# Of a file that is copied here: a request of this size ends well before obstore's limit of 30 s.
DOWNLOAD_BYTES = 32 * 2**20
BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class ObjectLocation(Location):
    """An object, or all objects whose keys begin alike.

    Args:
        bucket: its name.
        key: parts joined by slashes; empty for the whole bucket.
    """

    bucket: str
    key: str

    appears_whole: ClassVar[bool] = False

    @classmethod
    def parsed(cls, text: str) -> "ObjectLocation":
        """The location an address names.

        Raises:
            InputError: not `s3://bucket/prefix`; the text is not repeated where it may hold a password.
        """
        match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[^/?#@]+)*)/*", text)
        if not match or {".", ".."} & set(match[2].split("/")):
            shown = "the address" if {"@", "?"} & set(text) else text
            raise InputError(
                f"{shown}: expected s3://bucket/prefix; credentials come from AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            )
        return cls(match[1], match[2].strip("/"))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> Self:
        return type(self)(self.bucket, self.key.rpartition("/")[0])

    def __truediv__(self, key: str) -> Self:
        return type(self)(self.bucket, f"{self.key}/{key}".strip("/"))

    def with_name(self, name: str) -> Self:
        return self.parent / name

    def absolute(self) -> Self:
        return self

    @property
    def _client(self) -> Any:
        return client(self.bucket)

    def is_file(self) -> bool:
        try:
            self.n_bytes()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        return next(self._listed(), None) is not None

    def _listed(self) -> Iterator[tuple[str, int]]:
        """(key, bytes) of every object below."""
        import obstore

        with translate_errors(self):
            for chunk in obstore.list(self._client, self.key or None, chunk_size=1000):
                yield from ((entry["path"], entry["size"]) for entry in chunk)

    def have(self, names: Iterable[str]) -> Iterator[bool]:
        files = self.files()  # one request for a thousand of them
        return (name in files for name in names)

    def folders(self) -> list[Self]:
        import obstore

        with translate_errors(self):
            prefixes = obstore.list_with_delimiter(self._client, self.key or None)["common_prefixes"]
        names = sorted(prefix.strip("/").rpartition("/")[2] for prefix in prefixes)
        return [self / name for name in names if not name.startswith(".")]

    def files(self) -> dict[str, int]:
        return {key.removeprefix(self.key).lstrip("/"): size for key, size in sorted(self._listed())}

    def n_bytes(self) -> int:
        import obstore

        with translate_errors(self):
            return int(obstore.head(self._client, self.key)["size"])

    def state(self) -> tuple[Any, ...]:
        import obstore

        with translate_errors(self):
            head = obstore.head(self._client, self.key)
        return head["size"], head["e_tag"], head["last_modified"]

    def opened(self) -> io.RawIOBase:
        return _ObjectFile(self)

    def read_bytes(self) -> bytes:
        import obstore

        with translate_errors(self):
            return bytes(obstore.get(self._client, self.key).bytes())

    def _read_range(self, start: int, length: int) -> Any:
        import obstore

        with translate_errors(self):
            return obstore.get_range(self._client, self.key, start=start, length=length)

    @contextmanager
    def _writing(self, *keys: str) -> Iterator[None]:
        """Around every write and removal: this process may still do it."""
        for key in keys:
            check_leases(self.bucket, key)
        with translate_errors(self):
            yield

    def write_whole(self, content: bytes | Path) -> None:
        import obstore

        with self._writing(self.key):
            # In one request, however large: of one that was begun and never ended the bucket keeps nothing.
            obstore.put(self._client, self.key, content, use_multipart=None if isinstance(content, Path) else False)

    def write_over(self, content: bytes, before: tuple[Any, ...] | None) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = "create" if before is None else {"e_tag": before[1]}
        with self._writing(self.key):
            try:
                obstore.put(self._client, self.key, content, mode=mode)
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                # One that is repeated because its answer was lost finds what it wrote itself.
                if self.read_bytes() != content:
                    raise StoreBusyError(f"another run wrote {self} meanwhile: run again") from None

    def remove(self) -> None:
        self._remove([self.key])

    def _remove(self, keys: list[str]) -> None:
        import obstore

        if keys:
            with self._writing(*keys):
                obstore.delete(self._client, keys)

    def remove_tree(self) -> None:
        manifest = f"{self.key}/{MANIFEST}"
        self._remove([manifest])
        self._remove([key for key, _ in self._listed() if key != manifest])

    def move_to(self, target: Self) -> None:
        import obstore

        with self._writing(self.key):
            obstore.rename(self._client, self.key, target.key)

    def take(self, folder: Path) -> None:
        # A large file goes up in parts: killed meanwhile, they are not seen, but stay until the bucket's own rule for
        # unfinished uploads removes them.
        self.remove_tree()
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        for name in sorted(names, key=lambda name: name == MANIFEST):
            (self / name).write_whole(folder / name)

    def copy_to(self, folder: Path) -> None:
        for name in self.files():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self / name)._download(folder / name)

    def _download(self, target: Path) -> None:
        with target.open("wb") as file:
            shutil.copyfileobj(_ObjectFile(self), file, DOWNLOAD_BYTES)

    def mapped(self) -> np.ndarray:
        import obstore

        with translate_errors(self):
            content = obstore.get(self._client, self.key).bytes()
        return np.frombuffer(bytearray(content), np.uint8)

    @contextmanager
    def as_file(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="dataworth-") as folder:
            self._download(Path(folder) / self.name)
            yield Path(folder) / self.name

    def table_source(self) -> Any:
        return io.BufferedReader(_ObjectFile(self), BUFFER_BYTES)

    def array_store(self) -> Any:
        from zarr.storage import StorePath

        from dataworth.storage.s3.arrays import ArrayObjects

        return StorePath(ArrayObjects(self.bucket), self.key)

    def writer_lock(self) -> AbstractContextManager[None]:
        return lease(self, self.bucket, self.key)

    def check_writable(self, option: str) -> None:
        try:
            self.is_dir()
        except StoreUnreachableError as error:
            raise InputError(f"{option} {self}: cannot be used ({error.reason})") from None

    def is_read_only(self) -> bool:
        return False


class _ObjectFile(io.RawIOBase):
    """An object read in pieces, as the libraries that read files want it."""

    def __init__(self, location: ObjectLocation) -> None:
        self._location, self._size, self._at = location, location.n_bytes(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._at))
        if length:
            buffer[:length] = memoryview(self._location._read_range(self._at, length)).cast("B")
        self._at += length
        return length
