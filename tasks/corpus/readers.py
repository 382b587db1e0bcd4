"""Documents and queries from JSONL, Parquet, CSV, folders of text and Hugging Face data sets, one at a time."""

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from storage.errors import InputError
from tasks.corpus.config import CorpusConfig, QueriesConfig
from tasks.corpus.documents import Document, Query, document, query, short, unique
from tasks.visible import visible

__all__ = ["read_documents", "read_queries"]

Row = tuple[dict[str, Any], str]

ROWS_PER_BATCH = 1024


def read_documents(config: CorpusConfig, *, labelled: bool = False) -> Iterator[Document]:
    """All documents of a corpus, in the order of its files.

    Args:
        config: files and fields.
        labelled: every document must have a class.

    Raises:
        InputError: whatever is wrong, naming file, line and field; also when there is no document at all.
    """
    fields = {"id": config.id, "source": config.source, "text": config.text}
    if labelled:
        fields["label"] = config.label
    wanted = list(dict.fromkeys([*fields.values(), *config.fields]))

    def documents() -> Iterator[Document]:
        for name in config.files:
            if _is_folder(name):
                if labelled:
                    raise InputError(
                        f"{visible(name)}: a folder of text says no classes; give a classifier's corpus as JSONL"
                    )
                if config.fields:
                    raise InputError(
                        f"{visible(name)}: a folder of text has no field {config.fields[0]!r}; give the corpus as JSONL"
                    )
                yield from _folder(Path(name))
            else:
                for row, where in _rows(name, wanted):
                    yield document(row, fields, where, config.fields)

    return _at_least_one(unique(documents()), "document", ", ".join(config.files))


def read_queries(config: QueriesConfig) -> Iterator[Query]:
    """All queries of a JSONL file.

    Raises:
        InputError: whatever is wrong, naming file, line and field; also when there is no query at all.
    """
    path = _file(config.file)
    return _at_least_one(unique(query(row, where) for row, where in _jsonl(path)), "query", config.file)


def _at_least_one(items: Iterator[Any], what: str, where: str) -> Iterator[Any]:
    count = 0
    for count, item in enumerate(items, 1):  # noqa: B007  the count is read after the loop
        yield item
    if count == 0:
        raise InputError(f"{visible(where)}: holds no {what}")


def _is_folder(name: str) -> bool:
    return not name.startswith("hf:") and os.path.isdir(name)


def _rows(name: str, wanted: Sequence[str]) -> Iterator[Row]:
    """Rows of a file or data set.

    Args:
        name: as given.
        wanted: names of the fields that are read; rows may have others.
    """
    if name.startswith("hf:"):
        return _hugging_face(name)
    path = _file(name)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return _jsonl(path)
    if suffix == ".csv":
        return _csv(path)
    if suffix == ".parquet":
        return _parquet(path, wanted)
    raise InputError(
        f"{visible(name)}: unknown kind of file; expected .jsonl, .ndjson, .parquet, .csv, a folder of text, or hf:NAME"
    )


def _file(name: str) -> Path:
    path = Path(name)
    try:
        with path.open("rb"):
            return path
    except FileNotFoundError:
        raise InputError(f"{visible(name)}: no such file") from None
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from None


def _unreadable(name: str | Path, error: Exception) -> InputError:
    return InputError(f"{visible(str(name))}: cannot be read ({getattr(error, 'strerror', None) or error})")


def _reason(error: Exception) -> str:
    """First line of what a library says."""
    lines = str(error).strip().splitlines()
    return visible(lines[0]) if lines else type(error).__name__


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not valid UTF-8 (byte {error.start + 1} of the line)") from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines, with their ends, and where each is; a byte order mark at the start is left out."""
    name = visible(str(path))
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{name}, line {number}"
            yield _decoded(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, where), where


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {short(name)} comes twice in one object")
    return row


def _jsonl(path: Path) -> Iterator[Row]:
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
    csv.field_size_limit(sys.maxsize)
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


def _parquet(path: Path, wanted: Sequence[str]) -> Iterator[Row]:
    import pyarrow.parquet as pq

    name = visible(str(path))
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            _check_columns(name, file.schema_arrow.names, wanted)
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


def _folder(root: Path) -> Iterator[Document]:
    """A file is a document, its path the id; the first folder on the way to it is its source, else the root's name."""

    def unlisted(error: OSError) -> None:
        raise _unreadable(error.filename, error) from None

    for folder, folders, files in os.walk(root, onerror=unlisted):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *sorted(name for name in files if not name.startswith("."))]:
            path = Path(folder, name)
            where = visible(str(path))
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise InputError(f"{where}: not a plain file; a folder of text holds plain files only")
            if path.is_file():
                yield _text_file(root, path, where)


def _text_file(root: Path, path: Path, where: str) -> Document:
    relative = path.relative_to(root)
    source = relative.parts[0] if len(relative.parts) > 1 else root.resolve().name
    try:
        identifier = relative.as_posix().encode().decode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: the name of the file is not valid UTF-8") from None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    lines = content.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
    text = "".join(_decoded(line, f"{where}, line {number}") for number, line in enumerate(lines, 1))
    row = {"id": identifier, "source": source, "text": text}
    return document(row, {"id": "id", "source": "source", "text": "text"}, where)


def _hugging_face(name: str) -> Iterator[Row]:
    """`hf:NAME[:SPLIT]`; NAME is a data set of the hub or a local folder of data files, SPLIT defaults to train."""
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
