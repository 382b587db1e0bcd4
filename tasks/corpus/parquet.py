"""Rows of Parquet files, a few at a time, so that memory is bounded whatever the file says of itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dataworth.storage.errors import InputError
from dataworth.storage.plain_files import open_plain
from dataworth.tasks.corpus.columns import (
    BATCH_BYTES,
    ROWS_PER_BATCH,
    batch_rows,
    columns_read,
    refuse_long_texts,
    told,
    turn_columns,
)
from dataworth.tasks.corpus.fields import OPTIONS, TOOLS, Fields
from dataworth.tasks.corpus.pages import largest_page, refuse_footer
from dataworth.tasks.corpus.rows import Row
from dataworth.tasks.corpus.values import MAX_TEXT_BYTES
from dataworth.tasks.visible import visible

__all__ = ["parquet_rows"]

BUFFER_BYTES = 2**16
# What the texts of a file may have of its bytes on disk, beyond the first: the best packers of text reach 50.
MAX_UNPACKED = 1000
FREE_CHARACTERS = 2**30


def parquet_rows(path: Path, fields: Fields, within: Path | None = None) -> Iterator[Row]:
    """Rows of a Parquet file.

    Args:
        path: of the file.
        fields: that are read.
        within: the folder it was found in, which it may not lead out of (see `open_plain`).

    Raises:
        InputError: whatever is wrong, naming file, row and field.
    """
    name = visible(str(path))
    with told(path, "Parquet"), open_plain(path, name, within) as file:
        yield from _rows(path, file, name, fields)


def _rows(path: Path, file: BinaryIO, name: str, fields: Fields) -> Iterator[Row]:
    import pyarrow.parquet as pq

    refuse_footer(file, name)
    n_disk = path.stat().st_size
    # Without these two, a row group, which may be the whole file, is read at once.
    streamed: dict[str, Any] = {"pre_buffer": False, "buffer_size": BUFFER_BYTES}
    with pq.ParquetFile(path, page_checksum_verification=True, **streamed) as parquet:
        wanted, columns = columns_read(parquet.schema_arrow, fields, name)
        paths = [parquet.schema.column(n).path for n in range(len(parquet.schema.names))]
    # Of turns, texts stay numbers of a dictionary until their length is known.
    turns = (turn_columns(fields) | {TOOLS, OPTIONS}) & set(wanted)
    of_turns = [each for each in paths if "." in each and each.partition(".")[0] in turns]
    with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=of_turns, **streamed) as parquet:
        number = n_unpacked = 0
        for group in range(parquet.num_row_groups):
            largest = largest_page(file, parquet.metadata.row_group(group), columns, name)
            n_rows = max(1, min(ROWS_PER_BATCH, BATCH_BYTES // max(1, largest)))
            for batch in parquet.iter_batches(n_rows, row_groups=[group], columns=wanted):
                if largest > MAX_TEXT_BYTES:
                    refuse_long_texts(batch, f"{name}, row {number + 1}")
                rows = list(batch_rows(batch, columns, number, name))
                number += len(rows)
                n_unpacked += sum(len(value) for row, _ in rows for value in row.values() if isinstance(value, str))
                if n_unpacked > FREE_CHARACTERS + MAX_UNPACKED * n_disk:
                    raise InputError(
                        f"{rows[0][1]}: the file has {n_disk:,} bytes and unpacks to more than "
                        f"{MAX_UNPACKED:,} times as many, as no text does; write it anew, no row twice"
                    )
                yield from rows
