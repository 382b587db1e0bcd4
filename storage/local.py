"""Folders and files of this machine."""

import errno
import io
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PosixPath
from typing import Any, ClassVar, Self

import numpy as np
from filelock import FileLock, Timeout

from dataworth.storage.durable import make_folder, move_into_place, remove_tree, replace_file
from dataworth.storage.errors import InputError, StoreReadOnlyError
from dataworth.storage.place import Location, lock_held

__all__ = ["NOT_WRITABLE", "LocalLocation"]

# What the system says where a folder is of somebody else, or lies on a disk that is mounted to be read.
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


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
        sizes = {}
        for path in sorted(path for path in self.rglob("*") if path.is_file()):
            with suppress(FileNotFoundError):  # removed meanwhile
                sizes[str(path.relative_to(self))] = path.stat().st_size
        return sizes

    def n_bytes(self) -> int:
        return self.stat().st_size

    def state(self) -> tuple[Any, ...]:
        status = self.stat()
        return status.st_size, status.st_mtime_ns, status.st_ino

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
