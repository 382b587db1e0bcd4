"""A segment: rows of a gradient store that were planned together and are written shard by shard."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from dataworth.storage.checked_arrays import checked_arrays
from dataworth.storage.encoding import STORED, EncodedRows, decoded, encoded
from dataworth.storage.errors import StoreDamagedError, StoreIncompleteError
from dataworth.storage.layer_table import Layer
from dataworth.storage.locations import Place
from dataworth.storage.manifest import Store, new_store, write_manifest
from dataworth.storage.place import Location
from dataworth.storage.schema import EXAMPLE_COLUMNS
from dataworth.storage.sketches import KeptSketch
from dataworth.storage.zarr_arrays import array_at

__all__ = ["Segment", "SegmentTable", "new_segment"]

CRC_BYTES = 4
EXAMPLES = "examples/"
REMEDY = "run `dataworth verify --store` on its store, then `dataworth index` again rebuilds just it"
LARGEST_SKETCH = 65_000.0  # in float16; a sketch only chooses what is scored exactly


@dataclass(frozen=True)
class SegmentTable:
    """What the rows of a store have in common.

    Args:
        layers: the layer table.
        n_columns: of a row.
        dtype: one of dataworth.storage.encoding.STORED.
        rows_per_shard: of a new segment.
    """

    layers: Sequence[Layer]
    n_columns: int
    dtype: str
    rows_per_shard: int


def new_segment(
    store: Location, table: SegmentTable, contents: np.ndarray, n_windows: np.ndarray, replaces: str | None = None
) -> "Segment":
    """Plan a segment in full, before its first row; nothing is seen of it until the plan is whole.

    Args:
        store: folder of its store.
        table: what the rows of the store have in common.
        contents: (n_contents,) 32-byte hashes in row order.
        n_windows: (n_contents,) rows of each.
        replaces: name of the segment that goes once this one is whole.
    """
    hashes = np.frombuffer(contents.astype("S32").tobytes(), np.uint8).reshape(-1, 32)
    name = hashlib.sha256(hashes.tobytes()).hexdigest()[:32]
    n_rows = int(n_windows.sum())
    rows = table.rows_per_shard
    with new_store(store / name) as folder:
        group = zarr.open_group(folder, mode="w", zarr_format=3)
        stored = STORED[table.dtype]

        def rows_array(name: str, widths: tuple[int, ...], names: tuple[str, ...], **more: Any) -> None:
            """An array of the rows, a shard a chunk."""
            group.create_array(
                name,
                shape=(n_rows, *widths),
                chunks=(rows, *widths),
                compressors=[Crc32cCodec()],
                config={"write_empty_chunks": True},
                dimension_names=("example", *names),
                **more,
            )

        rows_array(
            "gradients",
            (table.n_columns,),
            ("column",),
            dtype=stored,
            fill_value=np.nan if stored.kind == "f" else 0,
            serializer=BytesCodec(),
            attributes={"dtype": table.dtype},
        )
        if table.dtype == "int8":
            rows_array("scales", (len(table.layers),), ("layer",), dtype=np.float32, serializer=BytesCodec())
        for column, dtype in EXAMPLE_COLUMNS.items():
            rows_array(f"examples/{column}", (), (), dtype=dtype)
        for content_column, values in (("hash", hashes), ("n_windows", n_windows.astype(np.int32))):
            group.create_array(
                f"contents/{content_column}",
                data=np.ascontiguousarray(values),
                chunks=values.shape,
                compressors=[Crc32cCodec()],
            )
        columns = [[layer.first_column, layer.n_columns] for layer in table.layers]
        content = {"n_rows": n_rows, "rows_per_shard": rows, "dtype": table.dtype, "layer_columns": columns}
        write_manifest(folder, {"fingerprint": name, **content, **({"replaces": replaces} if replaces else {})})
    return Segment(store / name)


class Segment(Store):
    """Rows planned together and written shard by shard.

    The plan is checked by its manifest, each chunk that was written since by its own CRC-32C.

    Raises:
        StoreIncompleteError: the folder holds no segment.
        StoreDamagedError: its plan is damaged.
    """

    def __init__(self, path: Place) -> None:
        super().__init__(path)
        with self.files.reading("zarr.json"):
            self._group = zarr.open_group(checked_arrays(self.files), mode="r", use_consolidated=False)
            self._gradients = array_at(self._group, "gradients")

    def _remedy(self) -> str:
        return REMEDY

    @property
    def name(self) -> str:
        return self.fingerprint

    @property
    def n_rows(self) -> int:
        return int(self.entry("n_rows"))

    @property
    def n_columns(self) -> int:
        return int(self._gradients.shape[1])

    @property
    def rows_per_shard(self) -> int:
        return int(self.entry("rows_per_shard"))

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
        return np.frombuffer(self._planned("contents/hash").tobytes(), "S32")

    @cached_property
    def first_rows(self) -> np.ndarray:
        """(n_contents + 1,) int64: first row of each content, and the end."""
        return np.concatenate([[0], np.cumsum(self._planned("contents/n_windows"), dtype=np.int64)])

    def _planned(self, name: str) -> np.ndarray:
        """An array that was written with the plan."""
        with self.files.reading(name):
            return np.asarray(array_at(self._group, name)[...])

    def rows(self, shard: int) -> slice:
        """Row numbers of a shard within the segment."""
        return slice(shard * self.rows_per_shard, min((shard + 1) * self.rows_per_shard, self.n_rows))

    def _chunk_path(self, array: str, shard: int) -> Location:
        chunks = self.path / array / "c" / str(shard)
        return chunks if array.startswith(EXAMPLES) else chunks / "0"

    def shards_done(self) -> Iterator[bool]:
        """For each shard whether its gradients are in place."""
        return (self.path / "gradients" / "c").have(f"{shard}/0" for shard in range(self.n_shards))

    def shard_done(self, shard: int) -> bool:
        return self._chunk_path("gradients", shard).is_file()

    def shard_bytes(self, shard: int) -> int:
        """Bytes on disk of a shard that is done."""
        return self._chunk_path("gradients", shard).n_bytes()

    def is_done(self) -> bool:
        return all(self.shards_done())

    def open_shards(self) -> Iterator[int]:
        """Shards still to be written."""
        return (shard for shard, done in enumerate(self.shards_done()) if not done)

    def content_done(self) -> np.ndarray:
        """(n_contents,) bool: all rows of the content are in place."""
        open_before = np.concatenate([[0], np.cumsum([not done for done in self.shards_done()])])
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
            self._write_chunk(f"{EXAMPLES}{name}", shard, columns[name])
        if gradients.scales is not None:
            self._write_chunk("scales", shard, gradients.scales)
        self._write_chunk("gradients", shard, gradients.rows)

    def _write_chunk(self, name: str, shard: int, rows: np.ndarray) -> None:
        """What zarr would write of a chunk, on disk before it has its name."""
        array = self._plan_of(name)
        whole = np.full(array.chunks, array.fill_value, array.dtype)
        whole[: len(rows)] = rows
        content = whole.tobytes()
        checksum = google_crc32c.value(content).to_bytes(CRC_BYTES, "little")
        self._chunk_path(name, shard).write_whole(content + checksum)

    def _plan_of(self, name: str) -> "zarr.Array[Any]":
        """How the chunks of an array are laid out, from its checked description."""
        with self.files.reading(f"{name}/zarr.json"):
            return array_at(self._group, name)

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
        matrix = self._checked(shard, "gradients", self._gradients.shape[1], self._gradients.dtype)
        if self.dtype != "int8":
            return EncodedRows(matrix[:n_rows], None)
        scales = self._checked(shard, "scales", len(self.layer_columns), np.dtype("<f4"))
        return EncodedRows(matrix[:n_rows], scales[:n_rows])

    def _checked(self, shard: int, array: str, n_columns: int, dtype: "np.dtype[Any]") -> np.ndarray:
        """The whole chunk of an array, (rows_per_shard, n_columns), its checksum compared."""
        path = self._chunk_path(array, shard)
        try:
            stored = path.mapped()
        except FileNotFoundError:
            if array != "gradients" and self.shard_done(shard):
                raise StoreDamagedError(f"{path}: is gone: {REMEDY}") from None
            raise StoreIncompleteError(
                f"{self.path} lacks shard {shard} of {self.n_shards}: run index-corpus again, it goes on from there"
            ) from None
        expected = self.rows_per_shard * n_columns * dtype.itemsize
        whole = len(stored) == expected + CRC_BYTES
        if not whole or google_crc32c.value(stored[:-CRC_BYTES]) != int(stored[-CRC_BYTES:].view("<u4")[0]):
            raise StoreDamagedError(f"shard {shard} of {self.path} is damaged ({path}): {REMEDY}")
        return stored[:-CRC_BYTES].view(dtype).reshape(self.rows_per_shard, n_columns)

    def check_shard(self, shard: int) -> None:
        """Read and check all that was kept of a shard except sketches, which are made again if they are damaged.

        Raises:
            StoreDamagedError, StoreIncompleteError: a part of it is not what was written.
        """
        self._stored(shard)
        for name in EXAMPLE_COLUMNS:
            self._example_chunk(name, shard)

    def _example_chunk(self, name: str, shard: int) -> np.ndarray:
        rows = self.rows(shard)
        return self._checked(shard, f"{EXAMPLES}{name}", 1, EXAMPLE_COLUMNS[name])[: rows.stop - rows.start, 0]

    def check_plan(self) -> None:
        """Read and check all that was planned.

        Raises:
            StoreDamagedError: a part of it is not what was written.
        """
        self.files.check_all()
        columns = {f"{EXAMPLES}{name}" for name in EXAMPLE_COLUMNS} | ({"scales"} if self.dtype == "int8" else set())
        with self.files.reading("zarr.json"):
            for name in columns:
                array_at(self._group, name)
        if len(self.contents) != len(self.first_rows) - 1 or self.first_rows[-1] != self.n_rows:
            raise self.files.damaged("contents")

    def remove_fragments(self) -> None:
        """Remove half-written chunks that a killed writer left beside its shard."""
        if isinstance(self.path, Path):  # an object appears whole
            for path in self.path.rglob("*.partial"):
                path.unlink()

    def set_aside(self, shard: int) -> None:
        """Let a damaged shard no longer count as done, so that it is computed again; its bytes stay beside it."""
        path = self._chunk_path("gradients", shard)
        if path.is_file():
            path.move_to(path.with_name("damaged"))

    def sketch(self, n_columns: int, make: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
        """A narrow version of each finished shard's rows, in order; made and kept at the first use.

        Args:
            n_columns: of the sketch.
            make: from (n, D) rows to (n, n_columns), float32.

        Yields:
            (n_rows of the shard, n_columns) float16; rows of a shard that is not done are NaN.
        """
        kept = KeptSketch(self.path / f"sketch_{n_columns}", self.n_rows, self.rows_per_shard, n_columns)
        for shard in range(self.n_shards):
            rows = self.rows(shard)
            block = kept.block(shard)
            if block is None and self.shard_done(shard):
                block = np.clip(make(self.read_shard(shard)), -LARGEST_SKETCH, LARGEST_SKETCH).astype(np.float16)
                kept.keep(shard, block)
            yield np.full((rows.stop - rows.start, n_columns), np.nan, np.float16) if block is None else block

    def column(self, name: str) -> np.ndarray:
        """(n_rows,) values of one of EXAMPLE_COLUMNS; 0 in shards that are not done.

        Raises:
            StoreDamagedError: that of a shard that is done is gone, or its bytes changed.
        """
        column = np.zeros(self.n_rows, EXAMPLE_COLUMNS[name])
        for shard, done in enumerate(self.shards_done()):
            if done:
                column[self.rows(shard)] = self._example_chunk(name, shard)
        return column
