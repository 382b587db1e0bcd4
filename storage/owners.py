"""Who provided the contents that no corpus names any more.

Gradients outlive a corpus that was removed, so that the next run finds them. Without this record nobody could tell,
once a further source is withdrawn, which of them are its rows: its documents may have been edited since.
"""

import hashlib
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from dataworth.storage.locations import Place, StoreFolders
from dataworth.storage.manifest import Store, is_complete, new_store, write_manifest
from dataworth.storage.place import Location

__all__ = ["OWNERS", "Owner", "keep_owners", "kept_owners"]

Owner = tuple[bytes, str, str]  # content, document id, source

OWNERS = pa.schema(
    [
        pa.field("content", pa.binary(32), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)
TABLE = "owners.parquet"


class OwnerStore(Store):
    """One record, written once; a later one has all that is to be kept of it.

    Raises:
        StoreDamagedError: its bytes changed.
    """

    def _remedy(self) -> str:
        return (
            "put a copy in its place, or remove the folder: rows of documents that no corpus names any more are then "
            "of nobody known"
        )

    def owners(self) -> set[Owner]:
        """All owners that the record names."""
        columns = [self.files.table(TABLE).column(name).to_pylist() for name in OWNERS.names]
        return set(zip(*columns, strict=True))


def kept_owners(root: Place) -> set[Owner]:
    """What is known of the contents that no corpus names any more."""
    owners: set[Owner] = set()
    for path in _records(root):
        owners |= OwnerStore(path).owners()
    return owners


def keep_owners(root: Place, owners: Iterable[Owner]) -> None:
    """Replace the kept owners; if killed meanwhile, all old and all new ones are there."""
    rows = sorted(owners)
    name = hashlib.sha256(repr(rows).encode()).hexdigest()[:32]
    target = StoreFolders(root).owners / name
    before = _records(root)
    if rows and not is_complete(target):
        with new_store(target) as folder:
            columns = dict(zip(OWNERS.names, zip(*rows, strict=True), strict=True))
            pq.write_table(pa.Table.from_pydict(columns, OWNERS), folder / TABLE, write_page_checksum=True)
            write_manifest(folder, {"fingerprint": name})
    for path in before:
        if path.name != name:
            path.remove_tree()


def _records(root: Place) -> list[Location]:
    return [path for path in StoreFolders(root).owners.folders() if is_complete(path)]
