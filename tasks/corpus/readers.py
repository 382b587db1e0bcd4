"""Documents and queries from JSONL, Parquet, CSV, folders of those or of text, and data sets, one at a time."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataworth.storage.errors import InputError
from dataworth.storage.plain_files import open_plain
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.containers import ROWS, refuse_container, suffix
from dataworth.tasks.corpus.data_sets import hugging_face
from dataworth.tasks.corpus.documents import Document, Query, document, query, told_apart, unique
from dataworth.tasks.corpus.folders import holds_rows, rows, rows_of_folder, texts_of_folder
from dataworth.tasks.corpus.rows import Row, jsonl, unreadable
from dataworth.tasks.visible import visible

__all__ = ["read_documents", "read_queries"]


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
    read = (each for name in config.files for each in _documents(name, fields, config.fields))
    return _at_least_one(told_apart(unique(read), config.fields), "document", ", ".join(config.files))


def read_queries(config: QueriesConfig) -> Iterator[Query]:
    """All queries of a JSONL file.

    Raises:
        InputError: whatever is wrong, naming file, line and field; also when there is no query at all.
    """
    path = _file(config.file)
    kind = suffix(path)
    if kind != ".json":  # which is often JSONL, and else is refused at its first line
        refuse_container(path, visible(config.file))
    if kind in ROWS and kind not in (".jsonl", ".ndjson"):
        raise InputError(f"{visible(config.file)}: queries are read from JSONL (.jsonl, .ndjson), not from {kind}")
    return _at_least_one(unique(_queries(path)), "query", config.file)


def _queries(path: Path) -> Iterator[Query]:
    with _in_memory(str(path)):
        for row, where in jsonl(path):
            yield query(row, where)


@contextmanager
def _in_memory(name: str) -> Iterator[None]:
    """What does not fit into memory, in spite of all limits, is a sentence."""
    try:
        yield
    except MemoryError:
        raise InputError(f"{visible(name)}: a document does not fit into memory; cut it into several") from None


def _at_least_one(items: Iterator[Any], what: str, where: str) -> Iterator[Any]:
    count = 0
    for count, item in enumerate(items, 1):  # noqa: B007  the count is read after the loop
        yield item
    if count == 0:
        raise InputError(f"{visible(where)}: holds no {what}")


def _documents(name: str, fields: Mapping[str, str], kept: Sequence[str]) -> Iterator[Document]:
    wanted = list(dict.fromkeys([*fields.values(), *kept]))
    all_rows: Iterator[Row]
    if name.startswith("hf:"):
        all_rows = hugging_face(name)
    elif not os.path.isdir(name):
        all_rows = rows(_file(name), wanted, fields["text"])
    elif holds_rows(Path(name)):
        all_rows = rows_of_folder(Path(name), wanted, fields["text"])
    else:
        if "label" in fields:
            raise InputError(f"{visible(name)}: a folder of text says no classes; give a classifier's corpus as JSONL")
        if kept:
            raise InputError(f"{visible(name)}: a folder of text has no field {kept[0]!r}; give the corpus as JSONL")
        with _in_memory(name):
            yield from texts_of_folder(Path(name), fields["text"])
        return
    with _in_memory(name):
        for row, where in all_rows:
            yield document(row, fields, where, kept)


def _file(name: str) -> Path:
    path = Path(name)
    try:
        with open_plain(path, visible(name)):
            return path
    except FileNotFoundError:
        raise InputError(f"{visible(name)}: no such file") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise unreadable(name, error) from None
