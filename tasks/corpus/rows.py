"""Rows of JSONL and CSV files, one at a time, each with the place it was read from."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dataworth.storage.errors import InputError
from dataworth.storage.plain_files import open_plain
from dataworth.tasks.corpus.containers import HEAD_BYTES, refuse_content
from dataworth.tasks.corpus.packed import packing_of, unpacked
from dataworth.tasks.corpus.rejected import Rejected
from dataworth.tasks.visible import reason, short, visible

__all__ = ["Row", "csv_rows", "decoded", "json_rows", "jsonl", "refuse_columns", "unreadable"]

Row = tuple[dict[str, Any], str]

# Of a line, which is held in memory as a whole: the longest text, each byte of it written as \u0001 is.
MAX_LINE_BYTES = 2**28
# Of a list of JSON, which is held as objects, of up to 40 times its bytes.
MAX_LIST_BYTES = 2**26
# Of a row of CSV with its line ends: the longest text, each byte of it a quote, which is written twice.
MAX_ROW_BYTES = 2**26
# A line beyond this many is looked through before it is parsed: in memory a value takes up to 40 times the bytes that
# it has in the line ("{},"), so that a row may have no more values than any document and its fields.
LONG_LINE_CHARACTERS = 2**20
MAX_VALUES = 2**20
# A string of JSON, to its end or that of the line; possessive, so that it is looked at once, whatever is in it.
STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


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


def _lines(path: Path, within: Path | None, longest: int) -> Iterator[tuple[bytes, str]]:
    """Lines, with their ends, and where each is; a byte order mark at the start is left out."""
    name = visible(str(path))
    with _opened(path, name, within) as file:
        refuse_content(file.peek(HEAD_BYTES)[:HEAD_BYTES], name)  # type: ignore[attr-defined]
        for number, line in enumerate(iter(lambda: file.readline(longest + 1), b""), 1):
            where = f"{name}, line {number}"
            if len(line) > longest:
                raise InputError(f"{where}: longer than {longest:,} bytes; a row is a line, and a text is a document")
            yield line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, where


def _opened(path: Path, name: str, within: Path | None) -> BinaryIO:
    try:
        file, packing = open_plain(path, name, within), packing_of(path)
    except OSError as error:
        raise unreadable(path, error) from None
    return file if packing is None else unpacked(file, packing, name)


def _refuse_many_values(line: str, where: str) -> None:
    """Refuse a line of more values than memory should hold, before it is parsed."""
    outside = STRING.sub("", line)
    if outside.count(",") + outside.count("[") + outside.count("{") > MAX_VALUES:
        raise InputError(f"{where}: has more than {MAX_VALUES:,} values; a row is one document and a few fields")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {short(name)} comes twice in one object")
    return row


def jsonl(path: Path, rejected: Rejected, within: Path | None = None) -> Iterator[Row]:
    """Rows of a file of one JSON object a line.

    Args:
        path: of the file.
        rejected: takes lines that are none.
        within: the folder it was found in, which it may not lead out of (see `open_plain`).

    Raises:
        InputError: it is no file of lines.
    """
    for line, where in _lines(path, within, MAX_LINE_BYTES):
        if not line or line.isspace():
            continue
        row = None
        with rejected.told():
            row = _parsed(decoded(line, where), where)
        if row is not None:
            yield row, where


def json_rows(path: Path, rejected: Rejected, within: Path | None = None) -> Iterator[Row]:
    """Rows of a file that is a list of JSON objects, read as a whole; else one object a line (see `jsonl`).

    Raises:
        InputError: it is longer than any line may be, or as `jsonl`.
    """
    name = visible(str(path))
    with _opened(path, name, within) as file:
        head = file.peek(HEAD_BYTES)[:HEAD_BYTES]  # type: ignore[attr-defined]
        refuse_content(head, name)
        if not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            yield from jsonl(path, rejected, within)
            return
        content = file.read(MAX_LIST_BYTES + 1)
    if len(content) > MAX_LIST_BYTES:
        raise InputError(f"{name}: a list of more than {MAX_LIST_BYTES:,} bytes; write it as .jsonl, a row a line")
    try:
        rows = json.loads(decoded(content.removeprefix(b"\xef\xbb\xbf"), name), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: broken JSON ({reason(error)})") from None
    for number, row in enumerate(rows, 1):
        where = f"{name}, row {number}"
        if isinstance(row, dict):
            yield row, where
            continue
        with rejected.told():
            raise InputError(f"{where}: expected a JSON object, got {type(row).__name__}")


def _parsed(text: str, where: str) -> dict[str, Any]:
    row = _value(text, where)
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row


def _value(text: str, where: str) -> Any:
    if len(text) > LONG_LINE_CHARACTERS:
        _refuse_many_values(text, where)
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: broken JSON ({reason(error)})") from None


def csv_rows(path: Path, rejected: Rejected, within: Path | None = None) -> Iterator[Row]:
    """Rows of a table whose first line names the columns; see `jsonl`."""
    csv.field_size_limit(MAX_ROW_BYTES)
    name = visible(str(path))
    n_bytes = 0
    bad: list[str] = []

    def lines() -> Iterator[str]:
        nonlocal n_bytes
        for line, where in _lines(path, within, MAX_ROW_BYTES):
            n_bytes += len(line)
            if n_bytes > MAX_ROW_BYTES:
                raise InputError(f"{where}: the row is longer than {MAX_ROW_BYTES:,} bytes; a text is a document")
            # A row may go over lines, so that it is rejected as a whole, once it is read.
            try:
                text = decoded(line, where)
            except InputError as error:
                bad.append(str(error))
                text = line.replace(b"\x00", b"").decode("utf-8", "replace")
            yield text

    def refuse_bad() -> None:
        if bad:
            said = bad[0]
            bad.clear()
            raise InputError(said)

    reader = csv.DictReader(lines(), strict=True)
    try:
        refuse_columns(f"{name}, line 1", reader.fieldnames or (), ())
        refuse_bad()
        n_bytes = 0
        for row in reader:
            n_bytes = 0
            where = f"{name}, line {reader.line_num}"
            is_whole = False
            with rejected.told():
                refuse_bad()
                if None in row:
                    raise InputError(f"{where}: has more cells than the header has names")
                if None in row.values():
                    raise InputError(f"{where}: has fewer cells than the header has names")
                is_whole = True
            if is_whole:
                yield row, where
        with rejected.told():  # of a line in which there was nothing else
            refuse_bad()
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}: broken CSV ({error})") from None


def refuse_columns(where: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse a table in which a name comes twice, or a wanted one is missing.

    Raises:
        InputError: names it.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{where}, field {short(twice[0])}: two columns have this name")
    for name in wanted:
        if name not in names:
            raise InputError(f"{where}, field {name!r}: missing (fields there: {short(', '.join(names)) or 'none'})")
