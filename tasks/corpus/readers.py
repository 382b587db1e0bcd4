"""Documents and queries from JSONL, Parquet, CSV, folders of those or of text, and data sets, one at a time."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataworth.storage.errors import InputError
from dataworth.storage.plain_files import open_plain
from dataworth.tasks.corpus.arrow import is_saved, saved_rows
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.containers import TEXTS, refuse_container, suffix
from dataworth.tasks.corpus.data_sets import hugging_face
from dataworth.tasks.corpus.documents import Document, Query, checked, document, query, unique
from dataworth.tasks.corpus.fields import Fields
from dataworth.tasks.corpus.folders import holds_rows, rows, rows_of_folder, text_of_file, texts_of_folder
from dataworth.tasks.corpus.places import place_of
from dataworth.tasks.corpus.rejected import Rejected
from dataworth.tasks.corpus.rows import Row, json_rows, jsonl, unreadable
from dataworth.tasks.visible import visible

__all__ = ["read_documents", "read_queries"]


def read_documents(
    config: CorpusConfig, rejected: Rejected | None = None, *, labelled: bool = False
) -> Iterator[Document]:
    """All documents of a corpus, in the order of its files; once it is known that the run ends, none.

    Args:
        config: files and fields.
        rejected: takes rows that cannot be read; None: one as `config` says.
        labelled: every document must have a class.

    Raises:
        InputError: whatever is wrong, naming file, line and field; also when there is no document at all.
    """
    rejected = rejected or Rejected(config.on_bad_row)
    fields = replace(config.names, labelled=labelled)
    places = [place_of(entry) for entry in config.files]
    files = [(name, place.owner) for place in places for name in place.files]
    _refuse_twice([name for name, _ in files])
    read = (each for name, owner in files for each in _documents(name, replace(fields, owner=owner), rejected))
    documents = rejected.before_the_end(checked(read, config.fields, rejected))
    return _at_least_one(documents, "document", ", ".join(config.files), rejected)


def read_queries(config: QueriesConfig) -> Iterator[Query]:
    """All queries of a JSONL file.

    Raises:
        InputError: whatever is wrong, naming file, line and field; also when there is no query at all.
    """
    path = _file(config.file)
    kind = suffix(path)
    refuse_container(path, visible(config.file))
    if kind in (".csv", ".parquet"):
        raise InputError(f"{visible(config.file)}: queries are read from JSONL (.jsonl, .ndjson), not from {kind}")
    return _at_least_one(unique(_queries(path)), "query", config.file, Rejected())


def _queries(path: Path) -> Iterator[Query]:
    with _in_memory(str(path)):
        rejected = Rejected()
        for row, where in (json_rows if suffix(path) == ".json" else jsonl)(path, rejected):
            yield query(row, where)
        rejected.stop()


@contextmanager
def _in_memory(name: str) -> Iterator[None]:
    """What does not fit into memory, in spite of all limits, is a sentence."""
    try:
        yield
    except MemoryError:
        raise InputError(f"{visible(name)}: a document does not fit into memory; cut it into several") from None


def _at_least_one(items: Iterator[Any], what: str, where: str, rejected: Rejected) -> Iterator[Any]:
    count = 0
    for count, item in enumerate(items, 1):  # noqa: B007  the count is read after the loop
        yield item
    rejected.stop()
    if count == 0:
        also = f", but for {len(rejected.sentences):,} that cannot be read" if rejected.sentences else ""
        raise InputError(f"{visible(where)}: holds no {what}{also}")


def _documents(name: str, fields: Fields, rejected: Rejected) -> Iterator[Document]:
    all_rows: Iterator[Row]
    if name.startswith("hf:"):
        all_rows = hugging_face(name)
    elif not os.path.isdir(name):
        path = _file(name)
        if suffix(path) in TEXTS:
            _refuse_text(fields, name, "a file")
            with _in_memory(name), rejected.told():
                yield text_of_file(path, fields)
            return
        all_rows = rows(path, fields, rejected)
    elif is_saved(Path(name)):
        all_rows = saved_rows(Path(name), fields)
    elif holds_rows(Path(name)):
        all_rows = rows_of_folder(Path(name), fields, rejected)
    else:
        _refuse_text(fields, name, "a folder")
        with _in_memory(name):
            yield from texts_of_folder(Path(name), fields, rejected)
        return
    with _in_memory(name):
        for row, where in all_rows:
            read = None
            with rejected.told():
                read = document(row, fields, where)
            if read is not None:
                yield read


def _refuse_twice(names: Sequence[str]) -> None:
    """Refuse a file that would be read twice, by two names or in a folder that is given, too."""
    taken: set[str] = set()
    # What is no path is said by who opens it.
    names = [name for name in names if not name.startswith("hf:") and "\0" not in name]
    for name in names:
        real = os.path.realpath(name)
        if real in taken:
            raise InputError(f"{visible(name)}: is given twice")
        taken.add(real)
    for name in names:
        above = next((str(each) for each in Path(os.path.realpath(name)).parents if str(each) in taken), None)
        if above is not None:
            raise InputError(f"{visible(name)}: is given twice, by itself and in the folder {visible(above)}")


def _refuse_text(fields: Fields, name: str, what: str) -> None:
    if fields.labelled:
        raise InputError(f"{visible(name)}: {what} of text says no classes; give a classifier's corpus as JSONL")
    if fields.kept:
        raise InputError(f"{visible(name)}: {what} of text has no field {fields.kept[0]!r}; give the corpus as JSONL")


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
