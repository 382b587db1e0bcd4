"""Rows of Arrow streams, and of folders that the `datasets` library saved, a few at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataworth.storage.errors import InputError
from dataworth.storage.plain_files import below, open_plain, trusted_folder
from dataworth.tasks.corpus.columns import ROWS_PER_BATCH, batch_rows, columns_read, refuse_long_texts
from dataworth.tasks.corpus.fields import Fields
from dataworth.tasks.corpus.rows import Row, decoded, unreadable
from dataworth.tasks.visible import reason, visible

__all__ = ["arrow_rows", "is_saved", "saved_rows"]

# Of a folder of `save_to_disk`; the second of one that has splits.
STATE, SPLITS = "state.json", "dataset_dict.json"
MAX_STATE_BYTES = 2**24
DEFAULT_SPLIT = "train"
MAGIC = b"ARROW1\x00\x00"


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
    try:
        with open_plain(path, name, within) as file:
            yield from _rows(file, name, fields)
    except InputError:
        raise
    except OSError as error:
        raise unreadable(path, error) if error.errno else _unreadable(name, error) from None
    except Exception as error:  # the file decides which of all errors Arrow meets
        raise _unreadable(name, error) from None


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


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(f"{name}: not a readable Arrow file ({reason(error)})")


def _rows(file: Any, name: str, fields: Fields) -> Iterator[Row]:
    import pyarrow as pa

    is_file = file.peek(len(MAGIC)).startswith(MAGIC)
    reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
    _, columns = columns_read(reader.schema, fields, name)
    batches = (reader.get_batch(n) for n in range(reader.num_record_batches)) if is_file else iter(reader)
    flat = [column for column in columns if not pa.types.is_nested(reader.schema.field(column).type)]
    number = 0
    for batch in batches:
        batch.validate(full=True)
        for first in range(0, len(batch), ROWS_PER_BATCH):
            part = batch.slice(first, ROWS_PER_BATCH)
            refuse_long_texts(part.select(flat), name)
            yield from batch_rows(part, columns, number, name)
            number += len(part)
