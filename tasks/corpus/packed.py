"""Packed files of rows, unpacked as they are read: never as a whole, and no bomb."""

import bz2
import gzip
import io
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

from dataworth.storage.errors import InputError
from dataworth.tasks.visible import reason

__all__ = ["PACKINGS", "packing_of", "unpacked"]

# By their last suffix; memory is bounded in each: 32 KiB, 900 kB and, of zstd, windows of 128 MiB.
PACKINGS = (".gz", ".bz2", ".zst")
# What the rows of a file may have of its bytes on disk, beyond the first: the best packers of text reach 50.
MAX_UNPACKED = 1000
FREE_BYTES = 2**30
BUFFER_BYTES = 2**20


def packing_of(path: Path) -> str | None:
    """The suffix that says how a file of rows is packed; None of one that is not."""
    last = path.suffix.lower()
    return last if last in PACKINGS and path.with_suffix("").suffix else None


def unpacked(file: BinaryIO, packing: str, where: str) -> BinaryIO:
    """The content of a packed file, to be read from its beginning on.

    Args:
        file: open for reading; it is closed with what is returned.
        packing: of PACKINGS.
        where: its name, for messages.
    """
    return io.BufferedReader(_Unpacked(file, packing, where), BUFFER_BYTES)


def _opened(file: BinaryIO, packing: str) -> Any:
    if packing == ".gz":
        return gzip.GzipFile(fileobj=file)
    if packing == ".bz2":
        return bz2.BZ2File(file)
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")


class _Unpacked(io.RawIOBase):
    """Counts what comes out; whatever a library says is a sentence."""

    def __init__(self, file: BinaryIO, packing: str, where: str) -> None:
        self._file, self._where, self._packing = file, where, packing
        self._most = FREE_BYTES + MAX_UNPACKED * os.fstat(file.fileno()).st_size
        self._n_bytes = 0
        self._stream: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            if self._stream is None:
                self._stream = _opened(self._file, self._packing)
            content = cast(bytes, self._stream.read(len(buffer)))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise InputError(f"{self._where}: not a readable {self._packing} file ({reason(error)})") from None
        self._n_bytes += len(content)
        if self._n_bytes > self._most:
            raise InputError(
                f"{self._where}: unpacks to more than {MAX_UNPACKED:,} times its bytes, as no text does; write it anew"
            )
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
