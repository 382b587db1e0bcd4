"""Rows of Parquet files, a few at a time, so that memory is bounded whatever the file says of itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dataworth.storage.errors import InputError
from dataworth.storage.plain_files import open_plain
from dataworth.storage.spelling import setting
from dataworth.tasks.corpus.fields import Fields, missing
from dataworth.tasks.corpus.pages import largest_page, refuse_footer
from dataworth.tasks.corpus.rows import MAX_VALUES, Row, refuse_columns, unreadable
from dataworth.tasks.corpus.values import MAX_TEXT_BYTES
from dataworth.tasks.visible import reason, visible

__all__ = ["parquet_rows"]

# Rows that are held at once: few, since a row may be a book, and together no more than so many bytes.
ROWS_PER_BATCH = 128
BATCH_BYTES = 2**28
BUFFER_BYTES = 2**16
# What the texts of a file may have of its bytes on disk, beyond the first: the best packers of text reach 50.
MAX_UNPACKED = 1000
FREE_CHARACTERS = 2**30
# Of a value of fixed width, which takes its place even where it is null.
MAX_WIDTH_BITS = 2**10


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
    try:
        with open_plain(path, name, within) as file:
            yield from _rows(path, file, name, fields)
    except InputError:
        raise
    except OSError as error:
        raise unreadable(path, error) if error.errno else _unreadable(name, error) from None
    except MemoryError:
        raise InputError(f"{name}: a group of its rows does not fit into memory; write it with smaller ones") from None
    except Exception as error:  # the file decides which of all errors Arrow meets
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(f"{name}: not a readable Parquet file ({reason(error)})")


def _rows(path: Path, file: BinaryIO, name: str, fields: Fields) -> Iterator[Row]:
    import pyarrow.parquet as pq

    refuse_footer(file, name)
    n_disk = path.stat().st_size
    # Without these two, a row group, which may be the whole file, is read at once.
    streamed: dict[str, Any] = {"pre_buffer": False, "buffer_size": BUFFER_BYTES}
    with pq.ParquetFile(path, page_checksum_verification=True, **streamed) as parquet:
        schema = parquet.schema_arrow
        refuse_columns(name, schema.names, ())
        wanted = fields.read_of(schema.names, name)
        turns = {fields.messages, fields.prompt, fields.completion}
        for field in wanted:
            _refuse_type(_type_of(schema, field, name), f"{name}, field {field!r}", of_turns=field in turns)
        # Of what a dot leads to, the whole column's name.
        columns_read = list(
            dict.fromkeys(field if field in schema.names else field.partition(".")[0] for field in wanted)
        )
        paths = [parquet.schema.column(n).path for n in range(len(parquet.schema.names))]
    # Of turns, texts stay numbers of a dictionary until their length is known.
    of_turns = [each for each in paths if "." in each and each.partition(".")[0] in turns & set(wanted)]
    with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=of_turns, **streamed) as parquet:
        number = n_unpacked = 0
        for group in range(parquet.num_row_groups):
            largest = largest_page(file, parquet.metadata.row_group(group), columns_read, name)
            n_rows = max(1, min(ROWS_PER_BATCH, BATCH_BYTES // max(1, largest)))
            for batch in parquet.iter_batches(n_rows, row_groups=[group], columns=wanted):
                if largest > MAX_TEXT_BYTES:
                    _refuse_long(batch, f"{name}, row {number + 1}")
                _refuse_many(batch, f"{name}, row {number + 1}")
                columns = [batch.column(field).to_pylist() for field in columns_read]
                n_unpacked += sum(len(value) for column in columns for value in column if isinstance(value, str))
                if n_unpacked > FREE_CHARACTERS + MAX_UNPACKED * n_disk:
                    raise InputError(
                        f"{name}, row {number + 1}: the file has {n_disk:,} bytes and unpacks to more than "
                        f"{MAX_UNPACKED:,} times as many, as no text does; write it anew, no row twice"
                    )
                for values in zip(*columns, strict=True):
                    number += 1
                    yield dict(zip(columns_read, values, strict=True)), f"{name}, row {number}"


def _type_of(schema: Any, field: str, where: str) -> Any:
    """The type of a column, or of what a dot leads to."""
    import pyarrow as pa

    if field in schema.names:
        return schema.field(field).type
    first, *parts = field.split(".")
    kind = schema.field(first).type
    for part in parts:
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            raise InputError(missing(schema.names, field, where))
        kind = kind.field(part).type
    return kind


def _refuse_many(batch: Any, where: str) -> None:
    """Refuse lists of more values than memory should hold, before they are objects of Python."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def size(array: Any) -> tuple[int, int]:
        """Values, and bytes of texts."""
        if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
            return size(array.flatten())
        if pa.types.is_struct(array.type):
            parts = [size(part) for part in array.flatten()]
            return sum(n for n, _ in parts), sum(n_bytes for _, n_bytes in parts)
        if pa.types.is_dictionary(array.type):
            return len(array), pc.sum(
                pc.cast(pc.binary_length(array.dictionary), "int64").take(array.indices)
            ).as_py() or 0
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            return len(array), pc.sum(pc.cast(pc.binary_length(array), "int64")).as_py() or 0
        return len(array), 0

    for column in batch.columns:
        n_values, n_bytes = size(column) if pa.types.is_nested(column.type) else (0, 0)
        if n_values > MAX_VALUES or n_bytes > BATCH_BYTES:
            raise InputError(
                f"{where} or one of the next {len(batch) - 1}: {n_values:,} values of {n_bytes:,} bytes, at most "
                f"{MAX_VALUES:,} of {BATCH_BYTES:,} bytes are read at once; cut it into documents"
            )


def _refuse_type(kind: Any, where: str, *, of_turns: bool) -> None:
    """Refuse what is no text, number or the like, of which a few bytes may stand for any number of values."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_struct(kind.value_type):
        if of_turns:
            return
        raise InputError(
            f"{where}: expected text, got list of objects, as conversations are; pass "
            f"{setting('corpus.messages')} with its name"
        )
    wide = pa.types.is_fixed_size_binary(kind) and kind.bit_width > MAX_WIDTH_BITS
    if wide or pa.types.is_nested(kind) or pa.types.is_run_end_encoded(kind):
        raise InputError(f"{where}: expected text, got {visible(str(kind))[:80]}")


def _refuse_long(batch: Any, where: str) -> None:
    """Refuse a text that is too long before it is a string of Python."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for field, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            continue
        longest = pc.max(pc.binary_length(values)).as_py() or 0
        if longest > MAX_TEXT_BYTES:
            raise InputError(
                f"{where} or one of the next {len(batch) - 1}, field {field!r}: a text of {longest:,} bytes, at most "
                f"{MAX_TEXT_BYTES:,} are read; cut it into documents"
            )
