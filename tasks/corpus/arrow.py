"""Rows of Arrow streams, and of folders that the `datasets` library saved, a few at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataworth.storage.errors import InputError
from dataworth.storage.plain_files import below, open_plain, trusted_folder
from dataworth.tasks.corpus.columns import ROWS_PER_BATCH, batch_rows, columns_read, refuse_long_texts, told
from dataworth.tasks.corpus.fields import Fields
from dataworth.tasks.corpus.rows import Row, decoded, unreadable
from dataworth.tasks.visible import reason, visible

__all__ = ["arrow_rows", "is_saved", "saved_rows"]

# Of a folder of `save_to_disk`; the second of one that has splits.
STATE, SPLITS = "state.json", "dataset_dict.json"
MAX_STATE_BYTES = 2**24
DEFAULT_SPLIT = "train"
MAGIC = b"ARROW1\x00\x00"
MAX_BATCH_BYTES = 2**32


def arrow_rows(path: Path, fields: Fields, within: Path | None = None) -> Iterator[Row]:
    """Rows of an Arrow file, or stream of record batches.

    Args:
        path: of the file.
        fields: that are read.
        within: the folder it was found in, which it may not lead out of (see `open_plain`).

    Raises:
        InputError: whatever is wrong, naming file, row and field.
    """
    name = visible(str(path))
    with told(path, "Arrow"), open_plain(path, name, within) as file:
        yield from _rows(file, name, fields)


def is_saved(folder: Path) -> bool:
    """Was a folder written by `save_to_disk`?"""
    return (folder / STATE).is_file() or (folder / SPLITS).is_file()


def saved_rows(folder: Path, fields: Fields) -> Iterator[Row]:
    """Rows of a folder of `save_to_disk`; of one with splits, of `train`.

    Raises:
        InputError: it names files elsewhere, or has indices, or as `arrow_rows`.
    """
    where = visible(str(folder))
    within = trusted_folder(folder)
    if (folder / SPLITS).is_file():
        splits = _json(folder / SPLITS, within).get("splits")
        known = [str(each) for each in splits] if isinstance(splits, list) else []
        if DEFAULT_SPLIT not in known:
            said = visible(", ".join(known))
            raise InputError(f"{where}: has no split {DEFAULT_SPLIT!r}; give the folder of one: {said}")
        folder = folder / DEFAULT_SPLIT
    state = _json(folder / STATE, within)
    if state.get("_indices_data_files"):
        raise InputError(f"{where}: rows were selected or shuffled; call flatten_indices() and save it again")
    files = state.get("_data_files")
    names = [str(each.get("filename")) for each in files if isinstance(each, dict)] if isinstance(files, list) else []
    if not names:
        raise InputError(f"{where}: its {STATE} names no files")
    for name in names:
        path = folder / name
        if not below(path, within):
            raise InputError(f"{where}: {visible(name)} is outside of the folder, of which alone files are read")
        yield from arrow_rows(path, fields, within)


def _json(path: Path, within: Path) -> dict[str, Any]:
    where = visible(str(path))
    try:
        with open_plain(path, where, within) as file:
            content = file.read(MAX_STATE_BYTES + 1)
        value = json.loads(decoded(content, where)) if len(content) <= MAX_STATE_BYTES else None
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: broken JSON ({reason(error)})") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object of at most {MAX_STATE_BYTES:,} bytes")
    return value


def _rows(file: Any, name: str, fields: Fields) -> Iterator[Row]:
    """Message by message: nothing is unpacked, so that a batch takes no more memory than its bytes on disk."""
    import pyarrow as pa

    if file.peek(len(MAGIC)).startswith(MAGIC):
        file.read(len(MAGIC))  # the file is a stream between this and its footer
    reader = pa.ipc.MessageReader.open_stream(file)
    schema, number = None, 0
    columns: list[str] = []
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            break
        if message.type == "schema":
            schema = pa.ipc.read_schema(message)
            _, columns = columns_read(schema, fields, name)
            if any(pa.types.is_dictionary(schema.field(column).type) for column in columns):
                raise InputError(f"{name}: columns of dictionaries are not read; write it as .parquet")
            continue
        if message.type != "record batch" or schema is None:  # a dictionary, of a column that is not read
            continue
        if _is_packed(message.metadata.to_pybytes()):
            raise InputError(f"{name}: its batches are packed; write it as .parquet, or without compression")
        if message.body.size > MAX_BATCH_BYTES:
            raise InputError(f"{name}: a batch of {message.body.size:,} bytes; write it in smaller ones")
        batch = pa.ipc.read_record_batch(message, schema).select(columns)
        batch.validate(full=True)
        flat = [column for column in columns if not pa.types.is_nested(schema.field(column).type)]
        for first in range(0, len(batch), ROWS_PER_BATCH):
            part = batch.slice(first, ROWS_PER_BATCH)
            refuse_long_texts(part.select(flat), name)
            yield from batch_rows(part, columns, number, name)
            number += len(part)
    if schema is None:
        raise InputError(f"{name}: not a readable Arrow file (it has no schema)")


def _is_packed(metadata: bytes) -> bool:
    """Whether the header of a record batch names a compression: the fourth field of the third of a Message.

    Source: Arrow's Message.fbs; tables of FlatBuffers begin with the distance to what says where their fields are.
    """

    def integer(place: int, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(metadata[place : place + size], "little", signed=signed)

    def field(table: int, number: int) -> int | None:
        places = table - integer(table, 4, signed=True)
        entry = 4 + 2 * number
        offset = integer(places + entry, 2) if entry < integer(places, 2) else 0
        return table + offset if offset else None

    header = field(integer(0, 4), 2)
    return header is None or field(header + integer(header, 4), 3) is not None
