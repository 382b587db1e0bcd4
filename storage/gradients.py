"""The gradient store: projected gradients of documents, in shards of whole rows.

A store holds the rows of one model under one projection and one tokenisation. It grows by segments: what a run adds is
one segment, planned in full before its first row is computed, so a run that was killed goes on with the same plan and
ends with the same bytes. A row belongs to a content (the SHA-256 of a document's tokens), so a document is found
again under any id, in any corpus. A shard counts once its gradient chunk is in place; that chunk is written last.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from storage.errors import StoreDamagedError, StoreIncompleteError
from storage.manifest import Store, is_complete, new_store, read_manifest, write_manifest, writer_lock
from storage.ref import StoreRef
from storage.schema import EXAMPLE_COLUMNS, rows_per_shard
from storage.zarr_arrays import array_at

__all__ = ["GradientStore", "Segment"]

CRC_BYTES = 4


class GradientStore(Store):
    """All segments of one (model, projection, tokenisation).

    Raises:
        StoreIncompleteError: the folder holds no store.
    """

    @classmethod
    def create(
        cls,
        root: Path,
        fingerprint: str,
        layers: Sequence[Mapping[str, Any]],
        dtype: str,
        attributes: Mapping[str, Any],
    ) -> "GradientStore":
        """Open the store of this fingerprint, made empty if it is not there yet.

        Args:
            root: folder of all gradient stores.
            fingerprint: hash of model, projection, tokenisation and dtype.
            layers: the layer table: name, shapes, `first_column`, `n_columns`.
            dtype: of the stored rows.
            attributes: JSON-serialisable; what the fingerprint was made from.
        """
        if not is_complete(root / fingerprint):
            with new_store(root / fingerprint) as folder:
                n_columns = sum(int(layer["n_columns"]) for layer in layers)
                write_manifest(
                    folder,
                    {
                        "fingerprint": fingerprint,
                        "layers": [dict(layer) for layer in layers],
                        "n_columns": n_columns,
                        "dtype": dtype,
                        "attributes": dict(attributes),
                    },
                )
        return cls(root / fingerprint)

    @property
    def ref(self) -> StoreRef:
        return StoreRef(kind="gradients", location=str(self.path), fingerprint=self.fingerprint)

    @property
    def layers(self) -> list[dict[str, Any]]:
        return list(self.manifest["layers"])

    @property
    def n_columns(self) -> int:
        return int(self.manifest["n_columns"])

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.manifest["dtype"])

    def writer(self) -> AbstractContextManager[None]:
        """The one writer's lock of this store; StoreBusyError where another process holds it."""
        return writer_lock(self.path)

    def segments(self) -> list["Segment"]:
        """All segments, finished or not, in the order of their names."""
        return [
            Segment(path) for path in sorted(self.path.iterdir()) if not path.name.startswith(".") and path.is_dir()
        ]

    def stored(self) -> np.ndarray:
        """Contents all of whose rows are in place: array of 32-byte hashes."""
        hashes = [segment.contents[segment.content_done()] for segment in self.segments()]
        return np.concatenate([np.empty(0, "S32"), *hashes])

    def rows_of(self, contents: np.ndarray) -> list[np.ndarray]:
        """The rows of some contents, (n_windows, n_columns) each, every shard read once.

        Args:
            contents: (n_contents,) 32-byte hashes.

        Raises:
            StoreIncompleteError: a content is not stored.
            StoreDamagedError: a shard's bytes changed.
        """
        found: dict[bytes, np.ndarray] = {}
        for segment in self.segments():
            wanted = np.flatnonzero(np.isin(segment.contents, contents) & segment.content_done())
            cached: tuple[int, np.ndarray] | None = None
            for number in wanted:
                first, end = int(segment.first_rows[number]), int(segment.first_rows[number + 1])
                parts = []
                for shard in range(first // segment.rows_per_shard, -(-end // segment.rows_per_shard)):
                    if cached is None or cached[0] != shard:
                        cached = (shard, segment.read_shard(shard))
                    start = segment.rows(shard).start
                    parts.append(cached[1][max(first - start, 0) : end - start])
                found[segment.contents[number]] = np.concatenate(parts)
        missing = [content for content in contents if content not in found]
        if missing:
            raise StoreIncompleteError(
                f"{self.path} lacks {len(missing)} of {len(contents)} documents: run index-corpus first"
            )
        return [found[content] for content in contents]

    def plan(self, contents: np.ndarray, n_windows: np.ndarray) -> list["Segment"]:
        """Segments to write so that every given content is stored; the caller holds the writer's lock.

        An unfinished segment that is wanted in full is taken up as it was planned; the rest becomes one new segment.

        Args:
            contents: (n_contents,) distinct 32-byte hashes, in the order their rows should have.
            n_windows: (n_contents,) rows of each; contents without rows are left out.
        """
        covered = self.stored()
        open_segments = []
        for segment in self.segments():
            unfinished = segment.contents[~segment.content_done()]
            wanted = bool(np.isin(segment.contents, contents).all())
            if len(unfinished) and wanted and not np.isin(unfinished, covered).any():
                open_segments.append(segment)
                covered = np.concatenate([covered, unfinished])
        new = ~np.isin(contents, covered) & (n_windows > 0)
        if new.any():
            open_segments.append(self._new_segment(contents[new], n_windows[new]))
        return open_segments

    def _new_segment(self, contents: np.ndarray, n_windows: np.ndarray) -> "Segment":
        hashes = np.frombuffer(contents.astype("S32").tobytes(), np.uint8).reshape(-1, 32)
        name = hashlib.sha256(hashes.tobytes()).hexdigest()[:32]
        n_rows = int(n_windows.sum())
        rows = rows_per_shard(self.n_columns, self.dtype.itemsize)
        with new_store(self.path / name) as folder:
            group = zarr.open_group(folder, mode="w", zarr_format=3)
            group.create_array(
                "gradients",
                shape=(n_rows, self.n_columns),
                chunks=(rows, self.n_columns),
                dtype=self.dtype,
                fill_value=np.nan,
                serializer=BytesCodec(),
                compressors=[Crc32cCodec()],
                config={"write_empty_chunks": True},
                dimension_names=("example", "column"),
            )
            for column, dtype in EXAMPLE_COLUMNS.items():
                group.create_array(
                    f"examples/{column}",
                    shape=(n_rows,),
                    chunks=(rows,),
                    dtype=dtype,
                    compressors=[Crc32cCodec()],
                    config={"write_empty_chunks": True},
                    dimension_names=("example",),
                )
            for content_column, values in (("hash", hashes), ("n_windows", n_windows.astype(np.int32))):
                group.create_array(
                    f"contents/{content_column}",
                    data=np.ascontiguousarray(values),
                    chunks=values.shape,
                    compressors=[Crc32cCodec()],
                )
            write_manifest(folder, {"fingerprint": name, "n_rows": n_rows, "rows_per_shard": rows})
        return Segment(self.path / name)


class Segment:
    """Rows planned together and written shard by shard."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self._group = zarr.open_group(path, mode="r+", use_consolidated=False)
        self._gradients = array_at(self._group, "gradients")

    @property
    def name(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def n_rows(self) -> int:
        return int(self.manifest["n_rows"])

    @property
    def rows_per_shard(self) -> int:
        return int(self.manifest["rows_per_shard"])

    @property
    def n_shards(self) -> int:
        return -(-self.n_rows // self.rows_per_shard)

    @cached_property
    def contents(self) -> np.ndarray:
        """(n_contents,) 32-byte hashes in row order."""
        return np.frombuffer(np.asarray(array_at(self._group, "contents/hash")[...]).tobytes(), "S32")

    @cached_property
    def first_rows(self) -> np.ndarray:
        """(n_contents + 1,) int64: first row of each content, and the end."""
        return np.concatenate(
            [[0], np.cumsum(np.asarray(array_at(self._group, "contents/n_windows")[...]), dtype=np.int64)]
        )

    def rows(self, shard: int) -> slice:
        """Row numbers of a shard within the segment."""
        return slice(shard * self.rows_per_shard, min((shard + 1) * self.rows_per_shard, self.n_rows))

    def _shard_path(self, shard: int) -> Path:
        return self.path / "gradients" / "c" / str(shard) / "0"

    def shard_done(self, shard: int) -> bool:
        return self._shard_path(shard).is_file()

    def is_done(self) -> bool:
        return all(self.shard_done(shard) for shard in range(self.n_shards))

    def open_shards(self) -> Iterator[int]:
        """Shards still to be written."""
        return (shard for shard in range(self.n_shards) if not self.shard_done(shard))

    def content_done(self) -> np.ndarray:
        """(n_contents,) bool: all rows of the content are in place."""
        open_before = np.concatenate([[0], np.cumsum([not self.shard_done(shard) for shard in range(self.n_shards)])])
        first = self.first_rows[:-1] // self.rows_per_shard
        last = (self.first_rows[1:] - 1) // self.rows_per_shard
        return np.asarray(open_before[last + 1] == open_before[first])

    def write_shard(self, shard: int, gradients: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        """Write a whole shard: its columns, then its gradients, whose chunk makes it count.

        Args:
            shard: number of the shard.
            gradients: (n_rows of the shard, n_columns).
            columns: EXAMPLE_COLUMNS, each (n_rows of the shard,).
        """
        rows = self.rows(shard)
        if gradients.shape != (rows.stop - rows.start, self._gradients.shape[1]):
            raise ValueError(f"shard {shard} has {rows.stop - rows.start} rows, got {gradients.shape}")
        for name in EXAMPLE_COLUMNS:
            array_at(self._group, f"examples/{name}")[rows] = columns[name]
        self._gradients[rows] = gradients

    def read_shard(self, shard: int) -> np.ndarray:
        """(n_rows of the shard, n_columns) gradients, read through a memory map, checked against their checksum.

        Raises:
            StoreIncompleteError: the shard was never written.
            StoreDamagedError: its bytes changed.
        """
        path = self._shard_path(shard)
        try:
            stored: np.ndarray = np.memmap(path, np.uint8, mode="r")
        except FileNotFoundError:
            raise StoreIncompleteError(
                f"{self.path} lacks shard {shard} of {self.n_shards}: run index-corpus again, it goes on from there"
            ) from None
        except ValueError:  # an empty file cannot be mapped
            stored = np.empty(0, np.uint8)
        n_columns = self._gradients.shape[1]
        expected = self.rows_per_shard * n_columns * self._gradients.dtype.itemsize
        whole = len(stored) == expected + CRC_BYTES
        if not whole or google_crc32c.value(stored[:-CRC_BYTES]) != int(stored[-CRC_BYTES:].view("<u4")[0]):
            raise StoreDamagedError(
                f"shard {shard} of {self.path} is damaged: remove {path} and run index-corpus again to rebuild just it"
            )
        rows = self.rows(shard)
        matrix = stored[:-CRC_BYTES].view(self._gradients.dtype).reshape(self.rows_per_shard, n_columns)
        return matrix[: rows.stop - rows.start]

    def column(self, name: str) -> np.ndarray:
        """(n_rows,) one of EXAMPLE_COLUMNS."""
        return np.asarray(array_at(self._group, f"examples/{name}")[...])
