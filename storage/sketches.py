"""The sketch of a segment, a narrow version of its rows: kept where it can be, made again where it is damaged."""

import json
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import MemoryStore

from dataworth.storage.local import NOT_WRITABLE
from dataworth.storage.place import Location

__all__ = ["KeptSketch"]

CRC_BYTES = 4
DTYPE = np.dtype("<f2")


class KeptSketch:
    """A zarr array beside the gradients; nothing is lost with it, so a damaged part counts as one that is not there.

    Args:
        path: its folder.
        n_rows: of the segment.
        rows_per_shard: of the segment, and of a chunk here.
        n_columns: of the sketch.
    """

    def __init__(self, path: Location, n_rows: int, rows_per_shard: int, n_columns: int) -> None:
        self._path, self._shape, self._chunk = path, (n_rows, n_columns), (rows_per_shard, n_columns)
        self._writable = True

    def block(self, shard: int) -> np.ndarray | None:
        """(n_rows of the shard, n_columns) float16; None if it is missing or damaged."""
        if not self._is_described:
            return None
        try:
            stored = (self._path / "c" / str(shard) / "0").mapped()
        except FileNotFoundError:
            return None
        n_bytes = self._chunk[0] * self._chunk[1] * DTYPE.itemsize
        if len(stored) != n_bytes + CRC_BYTES:
            return None
        if google_crc32c.value(stored[:-CRC_BYTES]) != int(stored[-CRC_BYTES:].view("<u4")[0]):
            return None
        first = shard * self._chunk[0]
        return stored[:-CRC_BYTES].view(DTYPE).reshape(self._chunk)[: self._shape[0] - first]

    def keep(self, shard: int, block: np.ndarray) -> None:
        """Write a block; of no effect where nothing may be written, since a sketch only saves time."""
        if not self._writable:
            return
        whole = np.full(self._chunk, np.nan, DTYPE)
        whole[: len(block)] = block
        content = whole.tobytes()
        try:
            if not self._is_described:
                (self._path / "zarr.json").write_whole(json.dumps(self._description, indent=2).encode())
                self.__dict__.pop("_is_described")
            (self._path / "c" / str(shard) / "0").write_whole(
                content + google_crc32c.value(content).to_bytes(CRC_BYTES, "little")
            )
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
            self._writable = False

    @cached_property
    def _is_described(self) -> bool:
        """The array's own description is there, as it was written."""
        try:
            return bool(json.loads((self._path / "zarr.json").read_bytes()) == self._description)
        except (FileNotFoundError, ValueError, RecursionError):
            return False

    @cached_property
    def _description(self) -> Any:
        """What zarr writes of the array."""
        written: dict[str, Any] = {}
        zarr.create_array(
            MemoryStore(written),
            shape=self._shape,
            chunks=self._chunk,
            dtype=DTYPE,
            fill_value=np.nan,
            serializer=BytesCodec(),
            compressors=[Crc32cCodec()],
            dimension_names=("example", "sketch"),
            zarr_format=3,
        )
        return json.loads(written["zarr.json"].to_bytes())
