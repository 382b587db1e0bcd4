"""What a place of stores can do, whichever kind it is: a folder or file of this machine, or of an object store."""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from dataworth.storage.errors import StoreBusyError

__all__ = ["Location", "lock_held"]


class Location(ABC):
    """The place of a folder or a file, a value made of text: nothing is opened, nothing has to be there.

    `str()` gives the text back. Errors: FileNotFoundError where a file is not there; StoreUnreachableError where an
    object store cannot be reached or refuses.
    """

    # A folder is there with all its files from one moment to the next, or not at all.
    appears_whole: ClassVar[bool]

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def parent(self) -> Self: ...

    @abstractmethod
    def __truediv__(self, key: str) -> Self: ...

    @abstractmethod
    def with_name(self, name: str) -> Self: ...

    @abstractmethod
    def absolute(self) -> Self: ...

    @abstractmethod
    def is_file(self) -> bool: ...

    @abstractmethod
    def is_dir(self) -> bool: ...

    @abstractmethod
    def read_bytes(self) -> bytes: ...

    @abstractmethod
    def have(self, names: Iterable[str]) -> Iterator[bool]:
        """For each name whether such a file is below, at any depth."""

    @abstractmethod
    def folders(self) -> list[Self]:
        """The folders in this one, by name; those whose names start with a dot are left out."""

    @abstractmethod
    def files(self) -> dict[str, int]:
        """Relative name → bytes of every file below, at any depth, by name."""

    @abstractmethod
    def n_bytes(self) -> int:
        """The size of this file in bytes."""

    @abstractmethod
    def state(self) -> tuple[Any, ...]:
        """A value that changes whenever this file is written."""

    @abstractmethod
    def opened(self) -> io.RawIOBase:
        """This file, opened to read parts of it."""

    @abstractmethod
    def write_whole(self, content: bytes) -> None:
        """Write this file so that a reader sees the old bytes or all the new ones, also after a crash."""

    @abstractmethod
    def write_over(self, content: bytes, before: tuple[Any, ...] | None) -> None:
        """`write_whole` under the writer's lock, if nobody wrote since: a process that slept may have lost the lock.

        Args:
            content: of the file.
            before: its `state` when it was read; None: it was not there.

        Raises:
            StoreBusyError: it is another by now.
        """

    @abstractmethod
    def remove(self) -> None:
        """Remove this file, if it is there."""

    @abstractmethod
    def remove_tree(self) -> None:
        """Remove this folder and all that is in it."""

    @abstractmethod
    def move_to(self, target: Self) -> None:
        """Give this file another name."""

    @abstractmethod
    def take(self, folder: Path) -> None:
        """Put all files of a local folder here, its manifest last; what was here before is removed."""

    @abstractmethod
    def copy_to(self, folder: Path) -> None:
        """Copy all files to a local folder that is not there yet."""

    @abstractmethod
    def mapped(self) -> np.ndarray:
        """(n_bytes,) uint8 content of this file; the array may be changed, which does not change the file."""

    @abstractmethod
    def as_file(self) -> AbstractContextManager[Path]:
        """This file as a local one, while the block lasts; once opened or mapped, it can be read afterwards, too."""

    @abstractmethod
    def table_source(self) -> Any:
        """What pyarrow reads this Parquet file from."""

    @abstractmethod
    def array_store(self) -> Any:
        """The zarr StorePath of this group, to be read."""

    @abstractmethod
    def writer_lock(self) -> AbstractContextManager[None]:
        """See dataworth.storage.manifest.writer_lock."""

    @abstractmethod
    def check_writable(self, option: str) -> None:
        """See dataworth.storage.locations.check_writable."""

    @abstractmethod
    def is_read_only(self) -> bool:
        """Whether this folder exists and may not be written; False where only an attempt would tell."""


def lock_held(folder: Location) -> StoreBusyError:
    """The error that refuses a second writer."""
    return StoreBusyError(f"another run is writing {folder}: wait for it to end, then run again", str(folder))
