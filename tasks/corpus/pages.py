"""What a Parquet file would take in memory, from the headers of its pages, before anything of it is unpacked.

The sizes in a file's footer are what its writer says; those in the pages' own headers are what a reader allocates.
Source: the Parquet format's `PageHeader`, in Thrift's compact protocol.
"""

import os
from collections.abc import Sequence
from typing import Any, BinaryIO

from dataworth.storage.errors import InputError

__all__ = ["largest_page", "refuse_footer"]

# Footers of files of ten thousand groups of rows have half of that.
MAX_FOOTER_BYTES = 2**26
# Text is packed 3 to 10 times, and text that repeats itself 50 times; pages beyond the first size are seldom.
LARGE_PAGE_BYTES = 2**28
MAX_PACKED = 250
# A page of one repeated source may have as many values as its group of rows.
MAX_PAGE_VALUES = 2**26
# Arrow gives up beyond the second.
HEADER_BYTES, MAX_HEADER_BYTES = 2**9, 2**24

# Of Thrift's compact protocol.
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
MAX_DEPTH = 8
# Fields of a PageHeader: sizes, and the kinds of page with their number of values.
UNPACKED, PACKED, DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 2, 3, 5, 7, 8


def refuse_footer(file: BinaryIO, where: str) -> None:
    """Refuse a file whose footer is larger than any that a table of text needs.

    Raises:
        InputError: it is.
    """
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        return
    file.seek(size - 8)
    n_bytes = int.from_bytes(file.read(8)[:4], "little")
    if MAX_FOOTER_BYTES < n_bytes < size:
        raise InputError(
            f"{where}: its footer has {n_bytes:,} bytes, at most {MAX_FOOTER_BYTES:,} are read; write it with fewer "
            "columns, or larger groups of rows"
        )


def largest_page(file: BinaryIO, group: Any, columns: Sequence[str], where: str) -> int:
    """Bytes of the largest page, unpacked, of some columns of a group of rows: no value of it is longer.

    Args:
        file: the Parquet file.
        group: its `RowGroupMetaData` as pyarrow gives it.
        columns: names of top-level columns.
        where: for messages.

    Raises:
        InputError: a page unpacks to far more than is on disk.
    """
    largest = 0
    for number in range(group.num_columns):
        chunk = group.column(number)
        name = chunk.path_in_schema.partition(".")[0]
        if name not in columns:
            continue
        place = min(offset for offset in (chunk.dictionary_page_offset, chunk.data_page_offset) if offset)
        end = place + chunk.total_compressed_size
        while place < end:
            header = _header(file, place)
            if header is None:  # the reader says what is wrong with it
                break
            n_header, unpacked, packed, n_values = header
            bomb = unpacked > LARGE_PAGE_BYTES and unpacked > MAX_PACKED * packed
            if bomb or n_values > MAX_PAGE_VALUES:
                raise InputError(
                    f"{where}, field {name!r}: a page of {packed:,} bytes unpacks to {unpacked:,} bytes and "
                    f"{n_values:,} values, as no text does; write the file anew"
                )
            largest = max(largest, unpacked)
            place += n_header + packed
    return largest


def _header(file: BinaryIO, place: int) -> tuple[int, int, int, int] | None:
    """Bytes of a page's header, of the page unpacked and packed, and its number of values; None where there is none."""
    n_bytes = HEADER_BYTES
    while True:
        file.seek(place)
        content = file.read(n_bytes)
        try:
            return _parsed(content)
        except IndexError:
            if len(content) < n_bytes or n_bytes >= MAX_HEADER_BYTES:
                return None
            n_bytes *= 8
        except ValueError:
            return None


def _parsed(content: bytes) -> tuple[int, int, int, int]:
    reader = _Compact(content)
    fields = reader.struct()
    pages = [fields.get(kind) for kind in (DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2)]
    unpacked, packed = fields.get(UNPACKED), fields.get(PACKED)
    if not isinstance(unpacked, int) or not isinstance(packed, int) or unpacked < 0 or packed < 0:
        raise ValueError("no sizes")
    counts = [page.get(1) for page in pages if isinstance(page, dict)]
    return reader.place, unpacked, packed, max((count for count in counts if isinstance(count, int)), default=0)


class _Compact:
    """Reads a struct of Thrift's compact protocol.

    Raises:
        IndexError: the bytes end within it.
        ValueError: it is none.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Its fields by number; of binary ones and lists, nothing."""
        if depth > MAX_DEPTH:
            raise ValueError("too deep")
        fields: dict[int, Any] = {}
        number = 0
        while True:
            byte = self.content[self.place]
            self.place += 1
            if byte == 0:
                return fields
            step, kind = byte >> 4, byte & 15
            number = number + step if step else self._integer()
            fields[number] = self._value(kind, depth) if kind > FALSE else kind == TRUE

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (I16, I32, I64):
            return self._integer()
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind == BINARY:
            self._skip(self._unsigned())
        elif kind in (BYTE, TRUE, FALSE):
            self._skip(1)
        elif kind == DOUBLE:
            self._skip(8)
        elif kind in (LIST, SET):
            byte = self.content[self.place]
            self.place += 1
            n_items = byte >> 4 if byte >> 4 != 15 else self._unsigned()
            for _ in range(n_items):
                self._value(byte & 15, depth + 1)
        else:
            raise ValueError("no kind of a page's header")
        return None

    def _skip(self, n_bytes: int) -> None:
        self.place += n_bytes
        if self.place > len(self.content):
            raise IndexError("ends early")

    def _unsigned(self) -> int:
        number = shift = 0
        while True:
            byte = self.content[self.place]
            self.place += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift > 63:
                raise ValueError("no integer")

    def _integer(self) -> int:
        number = self._unsigned()
        return (number >> 1) ^ -(number & 1)
