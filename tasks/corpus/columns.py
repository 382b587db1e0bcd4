"""Batches of columnar files as rows: refused by type where they are no text, and by size before they are unpacked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.corpus.fields import OPTIONS, TOOLS, Fields, missing
from dataworth.tasks.corpus.rows import MAX_VALUES, Row, refuse_columns, unreadable
from dataworth.tasks.corpus.values import MAX_TEXT_BYTES
from dataworth.tasks.visible import reason, visible

__all__ = ["BATCH_BYTES", "ROWS_PER_BATCH", "batch_rows", "columns_read", "refuse_long_texts", "told", "turn_columns"]

# Rows that are held at once: few, since a row may be a book, and together no more than so many bytes.
ROWS_PER_BATCH = 128
BATCH_BYTES = 2**28
# Of a value of fixed width, which takes its place even where it is null.
MAX_WIDTH_BITS = 2**10


@contextmanager
def told(path: Path, kind: str) -> Iterator[None]:
    """What goes wrong while a file is read, as a sentence.

    Args:
        path: of the file.
        kind: what it is, in a word.

    Raises:
        InputError: it cannot be read.
    """
    name = visible(str(path))
    try:
        yield
    except InputError:
        raise
    except MemoryError:
        raise InputError(f"{name}: a group of its rows does not fit into memory; write it with smaller ones") from None
    except Exception as error:  # the file decides which of all errors Arrow meets
        if isinstance(error, OSError) and error.errno:
            raise unreadable(path, error) from None
        raise InputError(f"{name}: not a readable {kind} file ({reason(error)})") from None


def columns_read(schema: Any, fields: Fields, where: str) -> tuple[list[str], list[str]]:
    """The fields that are read of a table, and the columns that hold them.

    Args:
        schema: of Arrow.
        fields: their names.
        where: for messages.

    Raises:
        InputError: one is missing, comes twice, or is of a type that holds no text.
    """
    refuse_columns(where, schema.names, ())
    wanted = fields.read_of(schema.names, where)
    turns = turn_columns(fields) | {TOOLS, OPTIONS}
    for field in wanted:
        _refuse_type(_type_of(schema, field, where), f"{where}, field {field!r}", of_turns=field in turns)
    return wanted, list(dict.fromkeys(field if field in schema.names else field.partition(".")[0] for field in wanted))


def turn_columns(fields: Fields) -> set[str]:
    """The columns that may hold the turns of a conversation."""
    return {fields.messages, fields.prompt, fields.completion}


def batch_rows(batch: Any, columns: Sequence[str], before: int, where: str) -> Iterator[Row]:
    """Rows of some columns of a batch.

    Args:
        batch: a RecordBatch of few rows.
        columns: their names.
        before: rows of the file that came before it.
        where: name of the file, for messages.

    Raises:
        InputError: it holds more than memory should.
    """
    _refuse_many(batch, columns, f"{where}, row {before + 1}")
    values = [batch.column(column).to_pylist() for column in columns]
    for number, row in enumerate(zip(*values, strict=True), before + 1):
        yield dict(zip(columns, row, strict=True)), f"{where}, row {number}"


def refuse_long_texts(batch: Any, where: str) -> None:
    """Refuse a text that is too long before it is a string of Python.

    Raises:
        InputError: names the field.
    """
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


def _refuse_many(batch: Any, columns: Sequence[str], where: str) -> None:
    """Refuse more values, or longer texts together, than memory should hold, before they are objects of Python."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def n_bytes(texts: Any) -> Any:
        return pc.cast(pc.binary_length(texts), "int64")

    def size(array: Any) -> tuple[int, int]:
        """Values, and bytes of texts."""
        kind = array.type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return size(array.flatten())
        if pa.types.is_struct(kind):
            parts = [size(part) for part in array.flatten()]
            return sum(n for n, _ in parts), sum(each for _, each in parts)
        if pa.types.is_dictionary(kind):
            return len(array), pc.sum(n_bytes(array.dictionary).take(array.indices)).as_py() or 0
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return len(array), pc.sum(n_bytes(array)).as_py() or 0
        return len(array), 0

    for name in columns:
        column = batch.column(name)
        n_values, total = size(column)
        if n_values > MAX_VALUES or total > BATCH_BYTES:
            raise InputError(
                f"{where} or one of the next {len(batch) - 1}, field {name!r}: {n_values:,} values of {total:,} bytes, "
                f"at most {MAX_VALUES:,} of {BATCH_BYTES:,} bytes are read at once; cut it into documents"
            )


def _refuse_type(kind: Any, where: str, *, of_turns: bool) -> None:
    """Refuse what is no text, number or the like, of which a few bytes may stand for any number of values."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if of_turns and pa.types.is_nested(kind):
        if _is_plain(kind):
            return
        raise InputError(
            f"{where}: of nested values only lists and objects of texts and numbers are read, got {_cut(kind)}"
        )
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_struct(kind.value_type):
        raise InputError(
            f"{where}: expected text, got list of objects, as conversations are; pass "
            f"{setting('corpus.messages')} with its name"
        )
    wide = pa.types.is_fixed_size_binary(kind) and kind.bit_width > MAX_WIDTH_BITS
    if wide or pa.types.is_nested(kind) or not _is_plain(kind):
        raise InputError(f"{where}: expected text, got {_cut(kind)}")


def _cut(kind: Any) -> str:
    return visible(str(kind))[:80]


def _is_plain(kind: Any) -> bool:
    """Texts and values of fixed width, and lists and objects of them: whose size is known before they are unpacked."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_plain(kind.value_type)
    if pa.types.is_struct(kind):
        return all(_is_plain(kind.field(number).type) for number in range(kind.num_fields))
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    return text or pa.types.is_primitive(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_decimal(kind)
