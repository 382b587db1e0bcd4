"""Folders given as a corpus: texts, one a file, or files of rows; never both, and never a container as a text."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from storage.errors import InputError
from tasks.corpus.containers import HEAD_BYTES, ROWS, refuse_container, refuse_content, suffix
from tasks.corpus.documents import Document, document
from tasks.corpus.rows import MAX_BYTES, Row, decoded, rows, unreadable
from tasks.visible import visible

__all__ = ["holds_rows", "rows_of_folder", "texts_of_folder"]


def holds_rows(root: Path) -> bool:
    """A folder holds files of rows, not of text. Only names are looked at.

    Raises:
        InputError: it holds both, or a container that is not read.
    """
    first: dict[bool, Path] = {}
    for path in _files(root):
        refuse_container(path, visible(str(path)))
        first.setdefault(_is_of_rows(path), path)
    if len(first) == 2:
        text, table = (visible(str(first[of_rows].relative_to(root))) for of_rows in (False, True))
        raise InputError(
            f"{visible(str(root))}: a folder holds either texts, as {text} is one, or files of rows, as {table} is; "
            "give them as two folders, or the files of rows by their names (a table meant as text is named .txt)"
        )
    return True in first


def rows_of_folder(root: Path, wanted: Sequence[str], text: str) -> Iterator[Row]:
    """Rows of every file of a folder, files by name, then subfolders by name; see `tasks.corpus.rows.rows`."""
    for path in _files(root):
        yield from rows(path, wanted, text)


def texts_of_folder(root: Path, field: str) -> Iterator[Document]:
    """A file is a document, its path the id; the first folder on the way to it is its source, else the root's name.

    Args:
        root: the folder.
        field: name that a row's text would have, by which rows are told from text.
    """
    for path in _files(root):
        yield _text_file(root, path, field)


def _is_of_rows(path: Path) -> bool:
    return suffix(path) in ROWS


def _files(root: Path) -> Iterator[Path]:
    """Plain files, those of a folder before those of its subfolders; names that begin with a dot are hidden."""

    def unlisted(error: OSError) -> None:
        raise unreadable(error.filename, error) from None

    for folder, folders, files in os.walk(root, onerror=unlisted):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *sorted(name for name in files if not name.startswith("."))]:
            path = Path(folder, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                where = visible(str(path))
                raise InputError(f"{where}: not a plain file; a folder of a corpus holds plain files only")
            if path.is_file():
                yield path


def _text_file(root: Path, path: Path, field: str) -> Document:
    where = visible(str(path))
    relative = path.relative_to(root)
    source = relative.parts[0] if len(relative.parts) > 1 else root.resolve().name
    try:
        identifier = relative.as_posix().encode().decode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: the name of the file is not valid UTF-8") from None
    lines = _content(path, where).removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
    _refuse_row(lines, field, where)
    text = "".join(decoded(line, f"{where}, line {number}") for number, line in enumerate(lines, 1))
    row = {"id": identifier, "source": source, "text": text}
    return document(row, {"id": "id", "source": "source", "text": "text"}, where)


def _content(path: Path, where: str) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            refuse_content(head, where)
            content = head + file.read(MAX_BYTES + 1 - len(head))
    except OSError as error:
        raise unreadable(path, error) from None
    if len(content) > MAX_BYTES:
        raise InputError(
            f"{where}: longer than {MAX_BYTES:,} bytes; cut it into documents, one a file or a line of JSONL"
        )
    return content


def _refuse_row(lines: Sequence[bytes], field: str, where: str) -> None:
    """Rows under a name of text: the first line is an object with the field of the text."""
    if not lines or not lines[0].lstrip().startswith(b"{"):
        return
    try:
        row: Any = json.loads(lines[0])
    except (ValueError, RecursionError):
        return
    if isinstance(row, dict) and field in row:
        raise InputError(f"{where}: holds rows (line 1 is a JSON object with the field {field!r}); name it .jsonl")
