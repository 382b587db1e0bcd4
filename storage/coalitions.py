"""What each source is worth to each query, and utilities of coalitions of sources."""

import hashlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataworth.storage.errors import StoreIncompleteError
from dataworth.storage.locations import Place, location_of
from dataworth.storage.manifest import Store, is_complete, new_store, write_manifest
from dataworth.storage.ref import StoreRef
from dataworth.storage.schema import DOCUMENT_VALUES, OVERLAP, UTILITIES, VALUES

__all__ = ["CoalitionStore", "UtilityStore"]

SUFFIX, WEIGHTS = ".parquet", ".safetensors"
HASH_DIGITS = 64  # of a name; early additions have others


class CoalitionStore(Store):
    """Values of sources with their intervals, written once.

    Raises:
        StoreIncompleteError: the folder holds no finished store.
    """

    @classmethod
    def write(
        cls,
        root: Place,
        fingerprint: str,
        values: list[dict[str, Any]],
        attributes: Mapping[str, Any],
        overlap: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
    ) -> StoreRef:
        """Write VALUES, OVERLAP and DOCUMENT_VALUES (see the schema); the same fingerprint twice keeps the first."""
        target = location_of(root) / fingerprint
        if not is_complete(target):
            with new_store(target) as folder:
                pq.write_table(
                    pa.Table.from_pylist(values, VALUES), folder / "values.parquet", write_page_checksum=True
                )
                for name, rows, schema in (
                    ("overlap", overlap, OVERLAP),
                    ("documents", documents, DOCUMENT_VALUES),
                ):
                    if rows is not None:
                        table = pa.Table.from_pylist(rows, schema)
                        pq.write_table(table, folder / f"{name}.parquet", write_page_checksum=True)
                write_manifest(folder, {"fingerprint": fingerprint, "attributes": dict(attributes)})
        return StoreRef(kind="coalitions", location=str(target), fingerprint=fingerprint)

    @property
    def values(self) -> pa.Table:
        """Table VALUES of dataworth.storage.schema."""
        return self.files.table("values.parquet")

    @property
    def attributes(self) -> dict[str, Any]:
        """How the values were made, and what is to be known of them."""
        return dict(self.entry("attributes"))

    @property
    def overlap(self) -> pa.Table | None:
        """Table OVERLAP of dataworth.storage.schema, if the game gives one."""
        return self._optional("overlap.parquet")

    @property
    def documents(self) -> pa.Table | None:
        """Table DOCUMENT_VALUES of dataworth.storage.schema, where it was asked for."""
        return self._optional("documents.parquet")

    def _optional(self, name: str) -> pa.Table | None:
        return self.files.table(name) if self.files.has(name) else None


class UtilityStore(Store):
    """Utilities of coalitions in one game, which grows: no coalition is evaluated twice.

    Every addition is a file of its own, named by the SHA-256 of its bytes, that is there as a whole or not at all, so
    that several runs may add.

    Raises:
        StoreIncompleteError: the folder holds no store.
    """

    @classmethod
    def create(cls, root: Place, fingerprint: str, attributes: Mapping[str, Any]) -> "UtilityStore":
        """Open the store of this game, made empty if it is not there yet."""
        target = location_of(root) / fingerprint
        if not is_complete(target):
            with new_store(target) as folder:
                write_manifest(folder, {"fingerprint": fingerprint, "attributes": dict(attributes)})
        return cls(target)

    def known(self, n_players: int, n_queries: int) -> tuple[np.ndarray, np.ndarray]:
        """(m, n_players) bool coalitions and (m, n_queries) float64 utilities of everything stored.

        Raises:
            StoreDamagedError: the bytes of an addition changed.
        """
        masks, utilities = [np.empty((0, n_players), bool)], [np.empty((0, n_queries))]
        for name, table in self.additions():
            with self.files.reading(name):
                packed = np.frombuffer(b"".join(table.column("coalition").to_pylist()), np.uint8)
                bits = np.unpackbits(packed.reshape(len(table), -1), axis=1, count=n_players)
                masks.append(bits.astype(bool))
                utilities.append(np.array(table.column("worth").to_pylist(), np.float64).reshape(len(table), n_queries))
        return np.concatenate(masks), np.concatenate(utilities)

    def additions(self) -> Iterator[tuple[str, pa.Table]]:
        """Name and table of each addition, checked against the hash that is its name.

        Raises:
            StoreDamagedError: its bytes changed.
        """
        for name in self.path.files():
            if name.endswith(SUFFIX):
                with self.files.reading(name):
                    content = (self.path / name).read_bytes()
                    stem = name.removesuffix(SUFFIX)
                    if len(stem) == HASH_DIGITS and hashlib.sha256(content).hexdigest() != stem:
                        raise self.files.damaged(name)
                    table = pq.read_table(BytesIO(content), page_checksum_verification=True)
                yield name, table

    def _remedy(self) -> str:
        return f"remove that file and run again, which evaluates its coalitions again ({self.path})"

    def add(self, masks: np.ndarray, utilities: np.ndarray) -> None:
        """Keep the (m, n_queries) utilities of (m, n_players) coalitions."""
        if len(masks) == 0:
            return
        coalitions = [row.tobytes() for row in np.packbits(masks, axis=1)]
        table = pa.Table.from_pydict({"coalition": coalitions, "worth": utilities.tolist()}, UTILITIES)
        buffer = BytesIO()
        pq.write_table(table, buffer, write_page_checksum=True)
        content = buffer.getvalue()
        (self.path / f"{hashlib.sha256(content).hexdigest()}{SUFFIX}").write_whole(content)

    def add_weights(self, mask: np.ndarray, content: bytes) -> None:
        """Keep what training on a coalition made of the weights, until `drop_weights`."""
        name = f"{_spelled(mask)}-{hashlib.sha256(content).hexdigest()}{WEIGHTS}"
        (self.path / name).write_whole(content)

    def weights(self, mask: np.ndarray) -> bytes:
        """What `add_weights` kept.

        Raises:
            StoreIncompleteError: nothing is kept, or another run has dropped it.
            StoreDamagedError: its bytes changed.
        """
        spelled = _spelled(mask)
        for name in self._weights():
            if name.startswith(f"{spelled}-") and (content := self._read_weights(name)) is not None:
                return content
        raise StoreIncompleteError(f"{self.path}: no weights of the coalition {spelled} are kept")

    def _read_weights(self, name: str) -> bytes | None:
        """None where it was dropped meanwhile."""
        try:
            content = (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(content).hexdigest() != name.removesuffix(WEIGHTS).rpartition("-")[2]:
            raise self.files.damaged(name)
        return content

    def check_weights(self) -> None:
        """Read all that `add_weights` kept.

        Raises:
            StoreDamagedError: bytes changed.
        """
        for name in self._weights():
            self._read_weights(name)

    def have_weights(self, masks: np.ndarray) -> np.ndarray:
        """(m,) whether weights of each (m, n_players) coalition are kept."""
        there = {name.partition("-")[0] for name in self._weights()}
        return np.array([_spelled(mask) in there for mask in masks], bool)

    def drop_weights(self) -> None:
        """Remove all that `add_weights` kept."""
        for name in self._weights():
            (self.path / name).remove()

    def _weights(self) -> list[str]:
        return [name for name in self.path.files() if name.endswith(WEIGHTS)]


def _spelled(mask: np.ndarray) -> str:
    return np.packbits(mask).tobytes().hex()
