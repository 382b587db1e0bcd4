"""The coalition store: what each source is worth to each query."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.locations import Location, Place
from storage.manifest import Store, is_complete, new_store, write_manifest
from storage.ref import StoreRef
from storage.schema import VALUES

__all__ = ["CoalitionStore"]


class CoalitionStore(Store):
    """Values of sources with their intervals, written once.

    Raises:
        StoreIncompleteError: the folder holds no finished store.
    """

    @classmethod
    def write(
        cls, root: Place, fingerprint: str, values: list[dict[str, Any]], attributes: Mapping[str, Any]
    ) -> StoreRef:
        """Write the table VALUES of storage.schema; the same fingerprint twice keeps the first."""
        target = Location.of(root) / fingerprint
        if not is_complete(target):
            with new_store(target) as folder:
                pq.write_table(
                    pa.Table.from_pylist(values, VALUES), folder / "values.parquet", write_page_checksum=True
                )
                write_manifest(folder, {"fingerprint": fingerprint, "attributes": dict(attributes)})
        return StoreRef(kind="coalitions", location=str(target), fingerprint=fingerprint)

    @property
    def values(self) -> pa.Table:
        """Table VALUES of storage.schema."""
        return pq.read_table((self.path / "values.parquet").table_source())
