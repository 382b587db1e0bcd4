"""The gradient store: projected gradients of documents, in shards of whole rows.

A store holds the rows of one model under one projection and one tokenisation. It grows by segments: what a run adds is
one segment, planned in full before its first row is computed, so a run that was killed goes on with the same plan and
ends with the same bytes. A row belongs to a content (the SHA-256 of a document's tokens), so a document is found
again under any id, in any corpus. A shard counts once its gradient chunk is in place; that chunk is written last.
Compacting replaces a segment by another that names it; from the moment the new one is whole the old one is not seen.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from storage.encoding import STORED, EncodedRows, decoded, encoded
from storage.errors import StoreDamagedError, StoreIncompleteError
from storage.manifest import Store, is_complete, new_store, read_manifest, write_manifest, writer_lock
from storage.ref import StoreRef
from storage.schema import EXAMPLE_COLUMNS, rows_per_shard
from storage.zarr_arrays import array_at

__all__ = ["GradientStore", "Segment"]

CRC_BYTES = 4
LARGEST_SKETCH = 65_000.0  # in float16; a sketch only chooses what is scored exactly


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
            dtype: of the stored rows, one of storage.encoding.STORED.
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
    def dtype(self) -> str:
        return str(self.manifest["dtype"])

    @property
    def rows_per_shard(self) -> int:
        """Rows of a shard of a new segment."""
        return rows_per_shard(self.n_columns, STORED[self.dtype].itemsize)

    def writer(self) -> AbstractContextManager[None]:
        """The one writer's lock of this store; StoreBusyError where another process holds it."""
        return writer_lock(self.path)

    def segments(self) -> list["Segment"]:
        """All segments that count, finished or not, in the order of their names."""
        found = [
            Segment(path) for path in sorted(self.path.iterdir()) if not path.name.startswith(".") and path.is_dir()
        ]
        names = {segment.name for segment in found}
        hidden = set()
        for segment in found:
            predecessor = segment.manifest.get("replaces")
            if predecessor in names:
                hidden.add(predecessor if segment.is_done() else segment.name)
        return [segment for segment in found if segment.name not in hidden]

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
                segment.remove_fragments()
                open_segments.append(segment)
                covered = np.concatenate([covered, unfinished])
        new = ~np.isin(contents, covered) & (n_windows > 0)
        if new.any():
            open_segments.append(self._new_segment(contents[new], n_windows[new]))
        return open_segments

    def without(self, segment: "Segment", contents: np.ndarray) -> int:
        """Take the rows of some contents out of a segment; the caller holds the writer's lock.

        The rows that stay are copied to a new segment, checked; the old one goes once the new one is whole. A segment
        of which nothing stays goes at once; one that has none of the contents, or was not finished, is left.

        Args:
            segment: of this store.
            contents: hashes to take out.

        Returns:
            Bytes of gradients given back.
        """
        gone = np.isin(segment.contents, contents)
        if not gone.any() or not segment.is_done():
            return 0
        n_windows = np.diff(segment.first_rows)
        if not gone.all():
            kept = np.repeat(~gone, n_windows)
            successor = self._new_segment(segment.contents[~gone], n_windows[~gone], replaces=segment.name)
            sources = np.flatnonzero(kept)
            columns = {name: segment.column(name) for name in EXAMPLE_COLUMNS}
            for shard in successor.open_shards():
                chosen = sources[successor.rows(shard)]
                successor.write_shard(
                    shard, segment.stored_rows(chosen), {name: column[chosen] for name, column in columns.items()}
                )
        shutil.rmtree(segment.path)
        return int(n_windows[gone].sum()) * self.n_columns * STORED[self.dtype].itemsize

    def remove_replaced(self) -> None:
        """Remove segments that others replace, which a killed compaction left; the caller holds the writer's lock."""
        counted = {segment.name for segment in self.segments()}
        for path in list(self.path.iterdir()):
            if path.is_dir() and not path.name.startswith(".") and path.name not in counted:
                shutil.rmtree(path)

    def _new_segment(self, contents: np.ndarray, n_windows: np.ndarray, replaces: str | None = None) -> "Segment":
        hashes = np.frombuffer(contents.astype("S32").tobytes(), np.uint8).reshape(-1, 32)
        name = hashlib.sha256(hashes.tobytes()).hexdigest()[:32]
        n_rows = int(n_windows.sum())
        rows = self.rows_per_shard
        with new_store(self.path / name) as folder:
            group = zarr.open_group(folder, mode="w", zarr_format=3)
            group.create_array(
                "gradients",
                shape=(n_rows, self.n_columns),
                chunks=(rows, self.n_columns),
                dtype=STORED[self.dtype],
                fill_value=np.nan if STORED[self.dtype].kind == "f" else 0,
                serializer=BytesCodec(),
                compressors=[Crc32cCodec()],
                config={"write_empty_chunks": True},
                dimension_names=("example", "column"),
                attributes={"dtype": self.dtype},
            )
            if self.dtype == "int8":
                group.create_array(
                    "scales",
                    shape=(n_rows, len(self.layers)),
                    chunks=(rows, len(self.layers)),
                    dtype=np.float32,
                    serializer=BytesCodec(),
                    compressors=[Crc32cCodec()],
                    config={"write_empty_chunks": True},
                    dimension_names=("example", "layer"),
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
            columns = [[layer["first_column"], layer["n_columns"]] for layer in self.layers]
            content = {"n_rows": n_rows, "rows_per_shard": rows, "dtype": self.dtype, "layer_columns": columns}
            write_manifest(folder, {"fingerprint": name, **content, **({"replaces": replaces} if replaces else {})})
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
    def dtype(self) -> str:
        return str(self.manifest.get("dtype", self._gradients.dtype.name))

    @property
    def layer_columns(self) -> list[slice]:
        """The columns of each layer."""
        return [slice(first, first + count) for first, count in self.manifest.get("layer_columns", [])]

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

    def shard_bytes(self, shard: int) -> int:
        """Bytes on disk of a shard that is done."""
        return self._shard_path(shard).stat().st_size

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

    def encoded(self, rows: np.ndarray) -> EncodedRows:
        """(n, n_columns) float32 rows as they are stored here.

        Raises:
            RowRangeError: a row is not finite, or does not fit the data type.
        """
        return encoded(rows, self.dtype, self.layer_columns)

    def write_shard(self, shard: int, gradients: EncodedRows, columns: Mapping[str, np.ndarray]) -> None:
        """Write a whole shard: its columns, then its gradients, whose chunk makes it count.

        Args:
            shard: number of the shard.
            gradients: its rows, encoded for this segment.
            columns: EXAMPLE_COLUMNS, each (n_rows of the shard,).
        """
        rows = self.rows(shard)
        if gradients.rows.shape != (rows.stop - rows.start, self._gradients.shape[1]):
            raise ValueError(f"shard {shard} has {rows.stop - rows.start} rows, got {gradients.rows.shape}")
        for name in EXAMPLE_COLUMNS:
            array_at(self._group, f"examples/{name}")[rows] = columns[name]
        if gradients.scales is not None:
            array_at(self._group, "scales")[rows] = gradients.scales
        self._gradients[rows] = gradients.rows

    def read_shard(self, shard: int) -> np.ndarray:
        """(n_rows of the shard, n_columns) gradients, read through a memory map, checked against their checksum.

        float16 and float32 rows come as they are stored, bfloat16 and int8 as float32.

        Raises:
            StoreIncompleteError: the shard was never written.
            StoreDamagedError: its bytes changed.
        """
        stored = self._stored(shard)
        return decoded(stored.rows, stored.scales, self.dtype, self.layer_columns)

    def stored_rows(self, chosen: np.ndarray) -> EncodedRows:
        """Some rows of the segment as they are stored, (n, n_columns), in the order of their numbers."""
        rows: list[np.ndarray] = []
        scales: list[np.ndarray] = []
        shards = chosen // self.rows_per_shard
        for shard in np.unique(shards):
            within = chosen[shards == shard] - int(shard) * self.rows_per_shard
            stored = self._stored(int(shard))
            rows.append(stored.rows[within])
            if stored.scales is not None:
                scales.append(stored.scales[within])
        return EncodedRows(np.concatenate(rows), np.concatenate(scales) if scales else None)

    def _stored(self, shard: int) -> EncodedRows:
        rows = self.rows(shard)
        n_rows = rows.stop - rows.start
        matrix = self._checked(shard, self._shard_path(shard), self._gradients.shape[1], self._gradients.dtype)
        if self.dtype != "int8":
            return EncodedRows(matrix[:n_rows], None)
        path = self.path / "scales" / "c" / str(shard) / "0"
        scales = self._checked(shard, path, len(self.layer_columns), np.dtype("<f4"))
        return EncodedRows(matrix[:n_rows], scales[:n_rows])

    def _checked(self, shard: int, path: Path, n_columns: int, dtype: "np.dtype[Any]") -> np.ndarray:
        """The whole chunk of a file, (rows_per_shard, n_columns), its checksum compared."""
        try:
            # Copy on write: nothing reaches the file, and libraries that ask for a writable array take it.
            stored: np.ndarray = np.memmap(path, np.uint8, mode="c")
        except FileNotFoundError:
            raise StoreIncompleteError(
                f"{self.path} lacks shard {shard} of {self.n_shards}: run index-corpus again, it goes on from there"
            ) from None
        except ValueError:  # an empty file cannot be mapped
            stored = np.empty(0, np.uint8)
        expected = self.rows_per_shard * n_columns * dtype.itemsize
        whole = len(stored) == expected + CRC_BYTES
        if not whole or google_crc32c.value(stored[:-CRC_BYTES]) != int(stored[-CRC_BYTES:].view("<u4")[0]):
            raise StoreDamagedError(
                f"shard {shard} of {self.path} is damaged: run `dataworth verify --store` on its store, then "
                "`dataworth index` again rebuilds just it"
            )
        return stored[:-CRC_BYTES].view(dtype).reshape(self.rows_per_shard, n_columns)

    def remove_fragments(self) -> None:
        """Remove half-written chunks that a killed writer left beside its shard."""
        for path in self.path.rglob("*.partial"):
            path.unlink()

    def set_aside(self, shard: int) -> None:
        """Take a damaged shard out of the count, so that it is computed again; its bytes stay beside it."""
        path = self._shard_path(shard)
        if path.exists():
            path.replace(path.with_name("damaged"))

    def sketch(self, n_columns: int, make: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
        """A narrow version of each finished shard's rows, in order; made and kept at the first use.

        Args:
            n_columns: of the sketch.
            make: from (n, D) rows to (n, n_columns), float32.

        Yields:
            (n_rows of the shard, n_columns) float16; rows of a shard that is not done are NaN.
        """
        name = f"sketch_{n_columns}"
        if name not in self._group:
            self._group.create_array(
                name,
                shape=(self.n_rows, n_columns),
                chunks=(self.rows_per_shard, n_columns),
                dtype=np.float16,
                fill_value=np.nan,
                compressors=[Crc32cCodec()],
                config={"write_empty_chunks": True},
                dimension_names=("example", "sketch"),
            )
        array = array_at(self._group, name)
        for shard in range(self.n_shards):
            rows = self.rows(shard)
            done = (self.path / name / "c" / str(shard) / "0").is_file()
            if not done and self.shard_done(shard):
                array[rows] = np.clip(make(self.read_shard(shard)), -LARGEST_SKETCH, LARGEST_SKETCH)
            try:
                yield np.asarray(array[rows])
            except ValueError:
                raise StoreDamagedError(
                    f"{self.path / name} is damaged: remove that folder, it is made again"
                ) from None

    def column(self, name: str) -> np.ndarray:
        """(n_rows,) one of EXAMPLE_COLUMNS."""
        return np.asarray(array_at(self._group, f"examples/{name}")[...])
