"""Folders given as a corpus: texts, one a file, or files of rows; never both, and never a container as a text."""

import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dataworth.storage.errors import InputError
from dataworth.storage.plain_files import below, open_plain, trusted_folder
from dataworth.tasks.corpus.arrow import arrow_rows
from dataworth.tasks.corpus.containers import HEAD_BYTES, ROWS, TEXTS, refuse_container, refuse_content, suffix
from dataworth.tasks.corpus.documents import Document, document
from dataworth.tasks.corpus.fields import Fields
from dataworth.tasks.corpus.parquet import parquet_rows
from dataworth.tasks.corpus.rejected import Rejected
from dataworth.tasks.corpus.rows import Row, csv_rows, decoded, json_rows, jsonl, unreadable
from dataworth.tasks.corpus.values import MAX_TEXT_BYTES, refuse_long
from dataworth.tasks.visible import short, visible

__all__ = ["holds_rows", "rows", "rows_of_folder", "text_of_file", "texts_of_folder"]

# A folder of rows whose field is null.
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def rows(path: Path, fields: Fields, rejected: Rejected, within: Path | None = None) -> Iterator[Row]:
    """Rows of a file.

    Args:
        path: of the file.
        fields: that are read; rows may have others.
        rejected: takes rows that are none.
        within: the folder it was found in, which it may not lead out of; None: of a file that a person named.

    Raises:
        InputError: whatever is wrong, naming file, line and field.
    """
    where = visible(str(path))
    kind = suffix(path)
    if kind in (".jsonl", ".ndjson"):
        return jsonl(path, rejected, within)
    if kind == ".json":
        return json_rows(path, rejected, within)
    if kind == ".csv":
        return csv_rows(path, rejected, within)
    if kind == ".parquet":
        return parquet_rows(path, fields, within)
    if kind == ".arrow":
        return arrow_rows(path, fields, within)
    refuse_container(path, where)
    raise InputError(
        f"{where}: unknown kind of file; expected {', '.join((*ROWS, *TEXTS))}, a folder of such files or of text, or "
        "hf:NAME"
    )


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


def rows_of_folder(root: Path, fields: Fields, rejected: Rejected) -> Iterator[Row]:
    """Rows of every file of a folder, files by name, then subfolders by name; see `rows`.

    What names of subfolders say, as Hive writes them (`year=2024/`), is a field of every row below.

    Raises:
        InputError: also where a row and its folder say different things.
    """
    within = trusted_folder(root)
    for path in _files(root):
        wanted = {fields.id, fields.label, *fields.kept, *(() if fields.owner else (fields.source,))}
        said = {name: value for name, value in _said_by_folders(path.relative_to(root)).items() if name in wanted}
        for row, where in rows(path, replace(fields, of_folders=tuple(said)), rejected, within):
            is_good = False
            with rejected.told():
                _refuse_otherwise(row, said, where)
                is_good = True
            if is_good:
                yield row | {name: value for name, value in said.items() if row.get(name) is None}, where


def _refuse_otherwise(row: dict[str, Any], said: dict[str, str], where: str) -> None:
    """Refuse a row that says something else than its folder."""
    for name, value in said.items():
        own = row.get(name)
        if own is None or value in (own, str(own), json.dumps(own, default=str)) or _is_number(value, own):
            continue
        raise InputError(f"{where}, field {short(name)}: is {short(str(own))}, and its folder says {short(value)}")


def _is_number(text: str, number: Any) -> bool:
    """Whether a text is a number, as `01` is 1."""
    try:
        return isinstance(number, int | float) and not isinstance(number, bool) and float(text) == float(number)
    except ValueError:
        return False


def _said_by_folders(relative: Path) -> dict[str, str]:
    """Fields by the folders' names: `name=value`, percent-encoded; without those that are null."""
    pairs = [part.partition("=") for part in relative.parts[:-1]]
    return {unquote(name): unquote(value) for name, sign, value in pairs if name and sign and value != HIVE_NULL}


def texts_of_folder(root: Path, fields: Fields, rejected: Rejected) -> Iterator[Document]:
    """A file is a document, its path the id; the first folder on the way to it is its source, else the root's name.

    Args:
        root: the folder.
        fields: names that rows would have, by which they are told from text; and the source, where one is given.
        rejected: takes files that are no text.
    """
    within = trusted_folder(root)
    for path in _files(root):
        read = None
        with rejected.told():
            read = _text_file(root, path, fields, within)
        if read is not None:
            yield read


def text_of_file(path: Path, fields: Fields) -> Document:
    """A file of text, named by itself: its name is the id, that of its folder its source, unless one is given.

    Raises:
        InputError: it holds rows, or no text.
    """
    return _text_file(path.absolute().parent, path.absolute(), fields, None)


def _is_of_rows(path: Path) -> bool:
    return suffix(path) in ROWS


def _files(root: Path) -> Iterator[Path]:
    """Plain files, those of a folder before those of its subfolders; names that begin with a dot are hidden.

    A link to a file of the folder itself is one, too, as in the hub's cache, where all files are links; one to
    elsewhere would read what the folder's owner never had.
    """
    within = trusted_folder(root)

    def unlisted(error: OSError) -> None:
        raise unreadable(error.filename, error) from None

    for folder, folders, files in os.walk(root, onerror=unlisted):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *sorted(name for name in files if not name.startswith("."))]:
            path = Path(folder, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                mode = _linked(path, within)
            elif stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                where = visible(str(path))
                raise InputError(f"{where}: not a plain file; a folder of a corpus holds plain files only")
            yield path


def _linked(path: Path, within: Path) -> int:
    """The mode of what a link leads to."""
    where = visible(str(path))
    if not below(path, within):
        raise InputError(
            f"{where}: links to what is outside of the folder, of which alone a corpus is read; copy it there, or name "
            "it by itself"
        )
    try:
        return path.stat().st_mode
    except OSError as error:
        raise unreadable(path, error) from None


def _text_file(root: Path, path: Path, fields: Fields, within: Path | None) -> Document:
    where = visible(str(path))
    relative = path.relative_to(root)
    folder = relative.parts[0] if len(relative.parts) > 1 else root.resolve().name
    folder = _said_by_folders(relative).get("source", folder)
    try:
        identifier = relative.as_posix().encode().decode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: the name of the file is not valid UTF-8") from None
    lines = _content(path, where, within).removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
    _refuse_row(lines, fields.text, where)
    text = "".join(decoded(line, f"{where}, line {number}") for number, line in enumerate(lines, 1))
    row = {"id": identifier, "source": fields.owner or folder, "text": text}
    return document(row, Fields(form="text"), where)


def _content(path: Path, where: str, within: Path | None) -> bytes:
    try:
        with open_plain(path, where, within) as file:
            head = file.read(HEAD_BYTES)
            refuse_content(head, where)
            content = head + file.read(MAX_TEXT_BYTES + 1 - len(head))
    except OSError as error:
        raise unreadable(path, error) from None
    refuse_long(len(content), where)
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
