"""Manifests and writers' locks: what makes a store whole, and one writer at a time.

A store is a folder that counts only once its `manifest.json` is there; the manifest is written last, flushed to disk
and renamed into place. Stores made in one go are built in a sibling folder and renamed as a whole.
"""

import glob
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from storage.errors import SchemaVersionError, StoreBusyError, StoreDamagedError, StoreIncompleteError
from storage.ref import StoreRef
from storage.schema import SCHEMA_VERSION

__all__ = [
    "Store",
    "is_complete",
    "new_store",
    "read_manifest",
    "replace_file",
    "staging_folder",
    "write_manifest",
    "writer_lock",
]

MANIFEST = "manifest.json"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old bytes or all the new ones, also after a crash."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Declare a store whole; `content` must be JSON-serialisable."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=1, sort_keys=True)
    replace_file(folder / MANIFEST, text.encode())


def is_complete(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a whole store.

    Raises:
        StoreIncompleteError: no manifest: absent, or its writer did not finish.
        StoreDamagedError: the manifest is not valid JSON.
        SchemaVersionError: written by a newer version.
    """
    try:
        content: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise StoreIncompleteError(f"{folder} holds no finished store: run the step that makes it again") from None
    except ValueError:
        raise StoreDamagedError(f"{folder / MANIFEST} is not valid JSON: remove {folder} and run again") from None
    if content["schema_version"] > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{folder} has schema version {content['schema_version']}, this dataworth reads up to {SCHEMA_VERSION}: "
            "upgrade dataworth"
        )
    return content


class Store:
    """A folder with a manifest; the stores are made from this.

    Args:
        path: of the folder.

    Raises:
        StoreIncompleteError: it holds no finished store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)

    @classmethod
    def open(cls, ref: StoreRef) -> Self:
        """The store a reference points to."""
        return cls(ref.path)

    @classmethod
    def exists(cls, root: Path, fingerprint: str) -> bool:
        """A finished store of this fingerprint is in a folder of stores."""
        return is_complete(root / fingerprint)

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold the one writer's place of a folder; the system frees it when the process dies.

    Raises:
        StoreBusyError: another process holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StoreBusyError(f"another run is writing {folder}: wait for it to end, then run again") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staging_folder(root: Path) -> Iterator[Path]:
    """A folder of this process in `root` to make files in; it goes with the block, however that ends.

    What a process of this machine left there when it was killed is removed, too.
    """
    root.mkdir(parents=True, exist_ok=True)
    prefix = f".staging-{platform.node() or 'host'}-"
    for left in root.glob(f"{glob.escape(prefix)}*"):
        owner = left.name.removeprefix(prefix).split("-")[0]
        if owner.isdigit() and not _is_alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=root))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def new_store(folder: Path) -> Iterator[Path]:
    """Build a store in a sibling folder; it takes its name only when the block ends without an exception.

    Raises:
        StoreBusyError: another process is building the same store.
    """
    with writer_lock(folder):
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            if not is_complete(folder):
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
