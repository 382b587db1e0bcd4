"""Manifests and writers' locks: what makes a store whole, and one writer at a time.

A store is a folder that counts only once its `manifest.json` is there; the manifest is written last, flushed to disk
and renamed into place. Stores made in one go are built in a local folder, which is then
renamed as a whole, or uploaded.
"""

import glob
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

from storage.errors import SchemaVersionError, StoreDamagedError, StoreIncompleteError
from storage.locations import Location, Place, replace_file
from storage.processes import is_alive
from storage.ref import StoreRef
from storage.schema import SCHEMA_VERSION

__all__ = [
    "Store",
    "building_folder",
    "is_complete",
    "new_store",
    "read_manifest",
    "replace_file",
    "staging_folder",
    "write_manifest",
    "writer_lock",
]

MANIFEST = "manifest.json"


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Declare a store whole; `content` must be JSON-serialisable.

    Tables that are there get a checksum: Parquet's own cover the data of a page, not its header nor the footer.
    """
    tables = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.parquet"))}
    whole = {"schema_version": SCHEMA_VERSION, **content, **({"tables": tables} if tables else {})}
    text = json.dumps(whole, indent=1, sort_keys=True)
    replace_file(folder / MANIFEST, text.encode())


def is_complete(folder: Place) -> bool:
    return (Location.of(folder) / MANIFEST).is_file()


def read_manifest(place: Place) -> dict[str, Any]:
    """The manifest of a whole store.

    Raises:
        StoreIncompleteError: no manifest: absent, or its writer did not finish.
        StoreDamagedError: the manifest is not valid JSON.
        SchemaVersionError: written by a newer version.
    """
    folder = Location.of(place)
    try:
        content: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
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

    def __init__(self, path: Place) -> None:
        self.path = Location.of(path)
        self.manifest = read_manifest(path)

    @classmethod
    def open(cls, ref: StoreRef) -> Self:
        """The store a reference points to."""
        return cls(ref.path)

    @classmethod
    def exists(cls, root: Place, fingerprint: str) -> bool:
        """A finished store of this fingerprint is in a folder of stores."""
        return is_complete(Location.of(root) / fingerprint)

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])


def writer_lock(folder: Place) -> AbstractContextManager[None]:
    """Hold the one writer's place of a folder.

    On this machine the system frees it when the process dies; on an object store it is free a minute later, at once
    for a process that ran on the same machine (see storage.leases).

    Raises:
        StoreBusyError: another process holds it; on an object store also where another took it over meanwhile.
    """
    return Location.of(folder).writer_lock()


@contextmanager
def staging_folder(root: Path) -> Iterator[Path]:
    """A folder of this process in `root` to make files in; it goes with the block, however that ends.

    What a process of this machine left there when it was killed is removed, too.
    """
    root.mkdir(parents=True, exist_ok=True)
    prefix = f".staging-{platform.node() or 'host'}-"
    for left in root.glob(f"{glob.escape(prefix)}*"):
        owner = left.name.removeprefix(prefix).split("-")[0]
        if owner.isdigit() and not is_alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=root))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def building_folder(root: Location) -> Iterator[Path]:
    """A local folder to make a store of `root` in: in it, else in the system's temporary folder (TMPDIR)."""
    with staging_folder(root if isinstance(root, Path) else Path(tempfile.gettempdir())) as folder:
        yield folder


@contextmanager
def new_store(folder: Place) -> Iterator[Path]:
    """Build a store in a local folder; it takes its place only when the block ends without an exception.

    Args:
        folder: of the store; where it is on an object store, the manifest is uploaded last.

    Raises:
        StoreBusyError: another process is building the same store.
    """
    target = Location.of(folder)
    with target.writer_lock(), _unfinished_folder(target) as partial:
        yield partial
        if not is_complete(target):
            target.take(partial)


@contextmanager
def _unfinished_folder(target: Location) -> Iterator[Path]:
    """A local folder, empty, that can take the place of a location; it goes with the block."""
    if not isinstance(target, Path):
        with building_folder(target.parent) as folder:
            yield folder
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
