"""The coalition store: what each source is worth to each query."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.manifest import is_complete, new_store, read_manifest, write_manifest
from storage.ref import StoreRef
from storage.schema import VALUES

__all__ = ["CoalitionStore"]


class CoalitionStore:
    """Values of sources with their intervals, written once.

    Raises:
        StoreIncompleteError: the folder holds no finished store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)

    @classmethod
    def open(cls, ref: StoreRef) -> "CoalitionStore":
        return cls(ref.path)

    @classmethod
    def write(
        cls, root: Path, fingerprint: str, values: list[dict[str, Any]], attributes: Mapping[str, Any]
    ) -> StoreRef:
        """Write the table VALUES of storage.schema; the same fingerprint twice keeps the first."""
        if not is_complete(root / fingerprint):
            with new_store(root / fingerprint) as folder:
                pq.write_table(pa.Table.from_pylist(values, VALUES), folder / "values.parquet")
                write_manifest(folder, {"fingerprint": fingerprint, "attributes": dict(attributes)})
        return StoreRef(kind="coalitions", location=str(root / fingerprint), fingerprint=fingerprint)

    @property
    def values(self) -> pa.Table:
        """Table VALUES of storage.schema."""
        return pq.read_table(self.path / "values.parquet")
