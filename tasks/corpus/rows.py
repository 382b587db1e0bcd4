"""Rows of JSONL, CSV, Parquet and Hugging Face data sets, one at a time, each with the place it was read from."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from storage.errors import InputError
from tasks.corpus.containers import HEAD_BYTES, ROWS, refuse_container, refuse_content, suffix
from tasks.corpus.documents import refuse_half, short
from tasks.visible import visible

__all__ = ["MAX_BYTES", "decoded", "hugging_face", "jsonl", "rows", "unreadable"]

Row = tuple[dict[str, Any], str]

# Of a line or a text, which is held in memory as a whole.
MAX_BYTES = 2**28
# Rows of Parquet that are held at once: few, since a row may be a book.
ROWS_PER_BATCH = 128
BUFFER_BYTES = 2**16


def rows(path: Path, wanted: Sequence[str], text: str) -> Iterator[Row]:
    """Rows of a file.

    Args:
        path: of the file.
        wanted: names of the fields that are read; rows may have others.
        text: the one of them that holds the text.

    Raises:
        InputError: whatever is wrong, naming file, line and field.
    """
    where = visible(str(path))
    kind = suffix(path)
    if kind in (".jsonl", ".ndjson"):
        return jsonl(path)
    if kind == ".csv":
        return _csv(path)
    if kind == ".parquet":
        return _parquet(path, wanted, text)
    refuse_container(path, where)
    raise InputError(
        f"{where}: unknown kind of file; expected {', '.join(ROWS)}, a folder of such files or of text, or hf:NAME"
    )


def unreadable(name: str | Path, error: Exception) -> InputError:
    """The sentence of an error of the system."""
    return InputError(f"{visible(str(name))}: cannot be read ({getattr(error, 'strerror', None) or error})")


def decoded(line: bytes, where: str) -> str:
    """One line as text.

    Raises:
        InputError: it is none.
    """
    if b"\x00" in line:
        raise InputError(f"{where}: holds a NUL byte, which no text does")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not valid UTF-8 (byte {error.start + 1} of the line)") from None


def _reason(error: Exception) -> str:
    """First line of what a library says."""
    lines = str(error).strip().splitlines()
    return visible(lines[0]) if lines else type(error).__name__


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines, with their ends, and where each is; a byte order mark at the start is left out."""
    name = visible(str(path))
    with path.open("rb") as file:
        refuse_content(file.peek(HEAD_BYTES)[:HEAD_BYTES], name)
        for number, line in enumerate(iter(lambda: file.readline(MAX_BYTES + 1), b""), 1):
            where = f"{name}, line {number}"
            if len(line) > MAX_BYTES:
                raise InputError(f"{where}: longer than {MAX_BYTES:,} bytes; a row is a line, and a text is a document")
            yield decoded(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, where), where


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {short(name)} comes twice in one object")
    return row


def jsonl(path: Path) -> Iterator[Row]:
    """Rows of a file of one JSON object a line.

    Raises:
        InputError: a line is none.
    """
    for text, where in _lines(path):
        if not text.strip():
            continue
        try:
            row = json.loads(text, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: broken JSON ({_reason(error)})") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected a JSON object, got {type(row).__name__}")
        yield row, where


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_BYTES)
    name = visible(str(path))
    reader = csv.DictReader((line for line, _ in _lines(path)), strict=True)
    try:
        _check_columns(f"{name}, line 1", reader.fieldnames or (), ())
        for row in reader:
            where = f"{name}, line {reader.line_num}"
            if None in row:
                raise InputError(f"{where}: has more cells than the header has names")
            if None in row.values():
                raise InputError(f"{where}: has fewer cells than the header has names")
            yield row, where
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}: broken CSV ({error})") from None


def _check_columns(where: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{where}, field {short(twice[0])}: two columns have this name")
    for name in wanted:
        if name not in names:
            raise InputError(f"{where}, field {name!r}: missing (fields there: {short(', '.join(names)) or 'none'})")


def _parquet(path: Path, wanted: Sequence[str], text: str) -> Iterator[Row]:
    import pyarrow.parquet as pq

    name = visible(str(path))
    # Without these two, a row group, which may be the whole file, is read at once.
    streamed = {"pre_buffer": False, "buffer_size": BUFFER_BYTES}
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, **streamed) as file:
            _check_columns(name, file.schema_arrow.names, wanted)
            refuse_half(file.schema_arrow.names, text, name)
            number = 0
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=list(wanted)):
                columns = [batch.column(field).to_pylist() for field in wanted]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield dict(zip(wanted, values, strict=True)), f"{name}, row {number}"
    except InputError:
        raise
    except Exception as error:  # the file decides which of all errors Arrow meets
        raise InputError(f"{name}: not a readable Parquet file ({_reason(error)})") from None


def hugging_face(name: str) -> Iterator[Row]:
    """`hf:NAME[:SPLIT]`; NAME is a data set of the hub or a local folder of data files, SPLIT defaults to train.

    Raises:
        InputError: it cannot be loaded.
    """
    import datasets

    where = visible(name)
    dataset, _, split = name.removeprefix("hf:").partition(":")
    split = split or "train"
    if not dataset:
        raise InputError(f"{where}: expected hf:NAME or hf:NAME:SPLIT")
    datasets.disable_progress_bars()
    try:
        for number, row in enumerate(datasets.load_dataset(dataset, split=split), 1):
            yield dict(row), f"{where}, row {number}"
    except Exception as error:  # the hub's client raises errors of many libraries; each means the same to the user
        raise InputError(f"{where}: the data set cannot be loaded ({_reason(error)})") from error
