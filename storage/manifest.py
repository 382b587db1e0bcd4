"""Manifests and writers' locks: what makes a store whole, and one writer at a time.

A store is a folder that counts only once its `manifest.json` is there, which is written last. Stores made in one go are
built in a local folder, which is then renamed as a whole, or uploaded.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from dataworth.storage.checked_files import CheckedFiles
from dataworth.storage.checksums import file_checksum, is_sealed, sealed
from dataworth.storage.durable import make_folder, remove_dead_partials, replace_file, staging_prefix
from dataworth.storage.errors import SchemaVersionError, StoreDamagedError, StoreIncompleteError
from dataworth.storage.locations import Place, location_of
from dataworth.storage.place import Location
from dataworth.storage.ref import StoreRef
from dataworth.storage.schema import SCHEMA_VERSION

__all__ = [
    "MANIFEST",
    "Store",
    "building_folder",
    "is_complete",
    "manifest_text",
    "new_store",
    "read_manifest",
    "set_aside",
    "staging_folder",
    "write_manifest",
    "writer_lock",
]

MANIFEST = "manifest.json"
# What a damaged one is called that was set aside, so that its store is made again.
DAMAGED = "damaged.json"


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Declare a store whole; `content` must be JSON-serialisable.

    Every file that is there by now is listed with its checksums; a store's later files bear their own.
    """
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    files = {name: file_checksum(folder / name) for name in names if name != MANIFEST}
    replace_file(folder / MANIFEST, manifest_text({**content, "files": files}))


def manifest_text(content: dict[str, Any]) -> bytes:
    """The bytes of a manifest."""
    return json.dumps(sealed(content), indent=1, sort_keys=True).encode()


def set_aside(folder: Place) -> None:
    """Let a store no longer count as whole, by renaming its manifest; all of its bytes stay."""
    manifest = location_of(folder) / MANIFEST
    manifest.move_to(manifest.with_name(DAMAGED))


def is_complete(folder: Place) -> bool:
    return (location_of(folder) / MANIFEST).is_file()


def read_manifest(place: Place, remedy: str | None = None) -> dict[str, Any]:
    """The manifest of a whole store.

    Args:
        place: folder of the store.
        remedy: what to do where it is damaged; None: remove the store.

    Raises:
        StoreIncompleteError: no manifest: absent, or its writer did not finish.
        StoreDamagedError: the manifest is not what was written.
        SchemaVersionError: written by a newer version.
    """
    folder = location_of(place)
    remedy = remedy or f"remove {folder} and run again"
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise StoreIncompleteError(f"{folder} holds no finished store: run the step that makes it again") from None
    except (ValueError, RecursionError):
        raise StoreDamagedError(f"{folder / MANIFEST} is not valid JSON: {remedy}") from None
    if not isinstance(content, dict) or not isinstance(content.get("schema_version"), int) or not is_sealed(content):
        raise StoreDamagedError(f"{folder / MANIFEST}: its bytes changed: {remedy}")
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
        StoreDamagedError: its manifest is damaged; and later, a file that is read.
    """

    def __init__(self, path: Place) -> None:
        self.path = location_of(path)
        remedy = self._remedy()
        self.manifest = read_manifest(path, remedy)
        self.files = CheckedFiles(self.path, self.manifest.get("files"), self.manifest.get("tables", {}), remedy)

    def _remedy(self) -> str:
        """What to do where a file is damaged."""
        return f"remove {self.path} and run again"

    @classmethod
    def open(cls, ref: StoreRef) -> Self:
        """The store a reference points to."""
        return cls(ref.path)

    @classmethod
    def exists(cls, root: Place, fingerprint: str) -> bool:
        """Whether a folder of stores holds a finished store of this fingerprint."""
        return is_complete(location_of(root) / fingerprint)

    @property
    def fingerprint(self) -> str:
        return str(self.entry("fingerprint"))

    def entry(self, key: str) -> Any:
        """An entry of the manifest that every store of the kind has.

        Raises:
            StoreDamagedError: it is missing.
        """
        try:
            return self.manifest[key]
        except KeyError:
            raise self.files.damaged(MANIFEST, f"lacks {key!r}") from None


def writer_lock(folder: Place) -> AbstractContextManager[None]:
    """Hold the lock that lets one process alone write to a folder.

    On this machine the system frees it when the process dies; on an object store it is free a minute later, at once
    for a process that ran on the same machine (see dataworth.storage.s3.leases).

    Raises:
        StoreBusyError: another process holds it; on an object store also where another took it over meanwhile.
    """
    return location_of(folder).writer_lock()


@contextmanager
def staging_folder(root: Path) -> Iterator[Path]:
    """A temporary folder of this process in `root` to make files in; removed when the block ends, however it ends.

    What a process of this machine left there when it was killed is removed, too.
    """
    make_folder(root)
    remove_dead_partials(root, deep=False)
    staging = root / f"{staging_prefix(os.getpid())}{uuid4().hex[:12]}"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def building_folder(root: Location) -> Iterator[Path]:
    """A local folder to build a store in: below `root` if that is local, else in the temporary folder (TMPDIR).

    That is so, too, where `root` can only be read, and what is made may turn out to be there already.
    """
    with staging_folder(
        root if isinstance(root, Path) and not root.is_read_only() else Path(tempfile.gettempdir())
    ) as folder:
        yield folder


@contextmanager
def new_store(folder: Place) -> Iterator[Path]:
    """Build a store in a local folder; it takes its place only when the block ends without an exception.

    Args:
        folder: of the store; where it is on an object store, the manifest is uploaded last.

    Raises:
        StoreBusyError: another process is building the same store.
    """
    target = location_of(folder)
    with target.writer_lock(), building_folder(target.parent) as partial:
        yield partial
        if not is_complete(target):
            target.take(partial)
