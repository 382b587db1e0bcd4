"""Documents and queries from JSONL, Parquet, CSV, folders of text and Hugging Face data sets, one at a time."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from storage.errors import InputError
from tasks.corpus.config import CorpusConfig, QueriesConfig
from tasks.corpus.documents import Document, Query, document, query, unique

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

    def documents() -> Iterator[Document]:
        for name in config.files:
            if _is_folder(name):
                if labelled:
                    raise InputError(f"{name}: a folder of text says no classes; give a classifier's corpus as JSONL")
                if config.fields:
                    raise InputError(
                        f"{name}: a folder of text has no field {config.fields[0]!r}; give the corpus as JSONL"
                    )
                yield from _folder(Path(name))
            else:
                for row, where in _rows(name):
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
        raise InputError(f"{where}: holds no {what}")


def _is_folder(name: str) -> bool:
    return not name.startswith("hf:") and Path(name).is_dir()


def _rows(name: str) -> Iterator[Row]:
    if name.startswith("hf:"):
        return _hugging_face(name)
    path = _file(name)
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".parquet": _parquet,
        ".csv": _csv,
    }
    if path.suffix.lower() not in readers:
        raise InputError(f"{name}: unknown kind of file; expected {', '.join(readers)}, a folder of text, or hf:NAME")
    return readers[path.suffix.lower()](path)


def _file(name: str) -> Path:
    path = Path(name)
    try:
        with path.open("rb"):
            return path
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not valid UTF-8 (byte {error.start + 1} of the line)") from None


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            text = _decoded(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, where)
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: broken JSON ({error})") from None
            if not isinstance(row, dict):
                raise InputError(f"{where}: expected a JSON object, got {type(row).__name__}")
            yield row, where


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)

    def lines() -> Iterator[str]:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield _decoded(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, f"{path}, line {number}")

    reader = csv.DictReader(lines(), strict=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise InputError(f"{where}: has more cells than the header has names")
            yield row, where
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: broken CSV ({error})") from None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(ROWS_PER_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield row, f"{path}, row {number}"
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _folder(root: Path) -> Iterator[Document]:
    """A file is a document, its path the id; the first folder on the way to it is its source, else the root's name."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            path = Path(folder, name)
            relative = path.relative_to(root)
            if path.is_symlink() or not path.is_file():
                raise InputError(f"{path}: not a plain file; a folder of text holds plain files only")
            source = relative.parts[0] if len(relative.parts) > 1 else root.resolve().name
            fields = {"id": "id", "source": "source", "text": "text"}
            try:
                identifier = relative.as_posix().encode().decode()
            except UnicodeEncodeError:
                raise InputError(f"{str(path)!r}: the name of the file is not valid UTF-8") from None
            lines = path.read_bytes().splitlines(keepends=True)
            text = "".join(_decoded(line, f"{path}, line {number}") for number, line in enumerate(lines, 1))
            row = {"id": identifier, "source": source, "text": text}
            yield document(row, fields, str(path))


def _hugging_face(name: str) -> Iterator[Row]:
    """`hf:NAME[:SPLIT]`; NAME is a data set of the hub or a local folder of data files, SPLIT defaults to train."""
    import datasets

    dataset, _, split = name.removeprefix("hf:").partition(":")
    split = split or "train"
    if not dataset:
        raise InputError(f"{name}: expected hf:NAME or hf:NAME:SPLIT")
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(dataset, split=split)
    except Exception as error:  # the hub's client raises errors of many libraries; each means the same to the user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{name}: the data set cannot be loaded ({reason})") from error
    for number, row in enumerate(rows, 1):
        yield dict(row), f"{name}, row {number}"
