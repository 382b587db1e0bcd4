"""Where things are kept: a folder of this machine or one of an object store, and the home of what outlives a run.

Everything that reads or writes a store goes through a Location. Which of the two kinds it is, only this module and
storage.objects know.
"""

import errno
import io
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import Any, ClassVar, Self

import numpy as np
from filelock import FileLock, Timeout

from storage.durable import make_folder, move_into_place, remove_tree, replace_file
from storage.errors import InputError, StoreBusyError, StoreReadOnlyError

__all__ = [
    "NOT_WRITABLE",
    "LocalLocation",
    "Location",
    "Place",
    "StoreFolders",
    "check_usable",
    "check_writable",
    "default_store",
    "home",
    "home_folder",
    "lock_held",
]

# What the system says where a folder is of somebody else, or lies on a disk that is mounted to be read.
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class Location(ABC):
    """The place of a folder or a file, a value made of text: nothing is opened, nothing has to be there.

    `str()` gives the text back. Errors: FileNotFoundError where a file is not there; StoreUnreachableError where an
    object store cannot be reached or refuses.
    """

    # A folder is there with all its files from one moment to the next, or not at all.
    appears_whole: ClassVar[bool]

    @staticmethod
    def of(place: "Place") -> "Location":
        """The location a text or a path names: `s3://bucket/prefix`, else a folder of this machine.

        Raises:
            InputError: it starts with `s3:` and is no address.
        """
        if isinstance(place, Location):
            return place
        if str(place).startswith("s3:"):
            from storage.objects import ObjectLocation

            return ObjectLocation.parsed(str(place))
        return LocalLocation(place)

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
        """Bytes of this file."""

    @abstractmethod
    def state(self) -> tuple[Any, ...]:
        """Differs from what it was before where this file was written since."""

    @abstractmethod
    def opened(self) -> io.RawIOBase:
        """This file, to read here and there."""

    @abstractmethod
    def write_whole(self, content: bytes) -> None:
        """Write this file so that a reader sees the old bytes or all the new ones, also after a crash."""

    @abstractmethod
    def write_over(self, content: bytes, before: tuple[Any, ...] | None) -> None:
        """`write_whole` under the writer's lock, where nobody wrote since: one who lost the lock in his sleep may not.

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
        """Make this the place of all files of a local folder, its manifest last; what was here goes."""

    @abstractmethod
    def copy_to(self, folder: Path) -> None:
        """Copy all files to a local folder that is not there yet."""

    @abstractmethod
    def mapped(self) -> np.ndarray:
        """(n_bytes,) uint8 content of this file, writable, though nothing reaches the file."""

    @abstractmethod
    def as_file(self) -> AbstractContextManager[Path]:
        """This file as a local one, while the block lasts; opened or mapped meanwhile, it stays."""

    @abstractmethod
    def table_source(self) -> Any:
        """What pyarrow reads this Parquet file from."""

    @abstractmethod
    def array_store(self) -> Any:
        """The zarr StorePath of this group, to be read."""

    @abstractmethod
    def writer_lock(self) -> AbstractContextManager[None]:
        """See storage.manifest.writer_lock."""

    @abstractmethod
    def check_writable(self, option: str) -> None:
        """See check_writable."""

    @abstractmethod
    def is_read_only(self) -> bool:
        """This folder is there and may not be written; False where only an attempt would tell."""


class LocalLocation(PosixPath, Location):
    """A folder or file of this machine: a path, so that whatever takes a path takes it."""

    appears_whole: ClassVar[bool] = True

    def have(self, names: Iterable[str]) -> Iterator[bool]:
        return ((self / name).is_file() for name in names)

    def folders(self) -> list[Self]:
        if not self.is_dir():
            return []
        return [path for path in sorted(self.iterdir()) if not path.name.startswith(".") and path.is_dir()]

    def files(self) -> dict[str, int]:
        found = sorted(path for path in self.rglob("*") if path.is_file())
        return {str(path.relative_to(self)): path.stat().st_size for path in found}

    def n_bytes(self) -> int:
        return self.stat().st_size

    def state(self) -> tuple[Any, ...]:
        found = self.stat()
        return found.st_size, found.st_mtime_ns, found.st_ino

    def opened(self) -> io.RawIOBase:
        return io.FileIO(self)

    def write_whole(self, content: bytes) -> None:
        make_folder(self.parent)
        replace_file(self, content)

    def write_over(self, content: bytes, before: tuple[Any, ...] | None) -> None:
        self.write_whole(content)  # the system takes a lock from no process that lives, however long it sleeps

    def remove(self) -> None:
        self.unlink(missing_ok=True)

    def remove_tree(self) -> None:
        remove_tree(self)

    def move_to(self, target: Self) -> None:
        self.replace(target)

    def take(self, folder: Path) -> None:
        if self.exists():
            remove_tree(self)
        move_into_place(folder, self)

    def copy_to(self, folder: Path) -> None:
        shutil.copytree(self, folder)

    def mapped(self) -> np.ndarray:
        try:
            # Copy on write: nothing reaches the file, and libraries that ask for a writable array take it.
            # As a plain array: slices of a memmap object cost far more than those of an array.
            return np.asarray(np.memmap(self, np.uint8, mode="c"))
        except ValueError:  # an empty file cannot be mapped
            return np.empty(0, np.uint8)

    @contextmanager
    def as_file(self) -> Iterator[Path]:
        yield self

    def table_source(self) -> Path:
        return self

    def array_store(self) -> Any:
        from zarr.storage import LocalStore, StorePath

        return StorePath(LocalStore(self, read_only=True))

    @contextmanager
    def writer_lock(self) -> Iterator[None]:
        lock = FileLock(self.with_name(f".{self.name}.lock"), timeout=0)
        try:
            make_folder(self.parent)
            lock.acquire()
        except Timeout:
            raise lock_held(self) from None
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
            raise StoreReadOnlyError(
                f"{self}: may not be written ({os.strerror(error.errno)}), and this run has something to write there: "
                "name a place that may be"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def check_writable(self, option: str) -> None:
        nearest = self.absolute()
        while not nearest.exists() and not nearest.is_symlink():
            nearest = nearest.parent
        if not nearest.is_dir():
            raise InputError(f"{option} {self}: {nearest} is not a folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise InputError(f"{option} {self}: {nearest} may not be written")

    def is_read_only(self) -> bool:
        return self.is_dir() and not os.access(self, os.W_OK | os.X_OK)


Place = str | Path | Location


def lock_held(folder: Location) -> StoreBusyError:
    """The refusal of a second writer."""
    return StoreBusyError(f"another run is writing {folder}: wait for it to end, then run again", str(folder))


def home() -> Path:
    """$DATAWORTH_HOME, else ~/.dataworth: the default store and the local MLflow.

    Raises:
        InputError: the variable is not set, and nobody knows of a home folder.
    """
    return home_folder("DATAWORTH_HOME", ".dataworth")


def home_folder(variable: str, name: str) -> Path:
    """The folder that an environment variable names, else one of that name in the user's home folder.

    Raises:
        InputError: the variable is not set, and nobody knows of a home folder.
    """
    try:
        return Path(os.environ.get(variable) or Path("~", name)).expanduser().absolute()
    except RuntimeError:
        raise InputError(f"no home folder is known for ~/{name}: set {variable} to a folder") from None


def default_store() -> Path:
    """The store used where none is named."""
    return home() / "store"


def check_writable(place: Place, option: str) -> None:
    """Refuse a place that cannot be made or written, before any work is done; makes nothing.

    Raises:
        InputError: a file is in its way, it may not be written, or its object store cannot be reached.
    """
    Location.of(place).check_writable(option)


def check_usable(place: Place, option: str) -> None:
    """As `check_writable`, but a folder of stores that is there already may be one that can only be read.

    What is not in it yet is then refused by the step that would make it.
    """
    folder = Location.of(place)
    if not (folder.is_read_only() and (folder / "corpora").is_dir()):
        folder.check_writable(option)


@dataclass(frozen=True)
class StoreFolders:
    """The folders of a store, one a kind (see storage.schema)."""

    root: Place

    @property
    def corpora(self) -> Location:
        return Location.of(self.root) / "corpora"

    @property
    def layers(self) -> Location:
        return Location.of(self.root) / "layers"

    @property
    def gradients(self) -> Location:
        return Location.of(self.root) / "gradients"

    @property
    def scores(self) -> Location:
        return Location.of(self.root) / "scores"

    @property
    def values(self) -> Location:
        return Location.of(self.root) / "values"

    @property
    def games(self) -> Location:
        return Location.of(self.root) / "games"

    @property
    def owners(self) -> Location:
        return Location.of(self.root) / "owners"

    @property
    def receipts(self) -> Location:
        return Location.of(self.root) / "receipts"

    @property
    def runs(self) -> Location:
        return Location.of(self.root) / "runs"
