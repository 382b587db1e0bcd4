"""Single values of a row, each checked: texts, names and further fields."""

import math
from collections.abc import Mapping
from datetime import date
from typing import Any

from dataworth.storage.corpus import FieldValue
from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.corpus.fields import missing

__all__ = ["MAX_TEXT_BYTES", "field_of", "name_of", "refuse_long", "text_of", "value_of"]

# Of one text. A tokenizer and what is kept of its tokens take 150 to 300 bytes of memory for each (measured: 280 with a
# vocabulary of 300): 10 GB at most.
MAX_TEXT_BYTES = 2**25
MAX_ID_CHARACTERS = 10_000
LARGEST_INTEGER = 2**63 - 1


def field_of(row: Mapping[str, Any], field: str, where: str) -> Any:
    if field in row:
        value = row[field]
    else:
        value = row
        for name in field.split("."):
            if not isinstance(value, Mapping) or name not in value:
                raise InputError(missing(row, field, where))
            value = value[name]
    if value is None:
        raise InputError(f"{where}, field {field!r}: null")
    return value


def text_of(row: Mapping[str, Any], field: str, where: str, *, blank: bool = False, empty: bool = False) -> str:
    value = field_of(row, field, where)
    if not isinstance(value, str):
        turns = isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value)
        remedy = f" of objects, as conversations are; pass {setting('corpus.messages')} {field}" if turns else ""
        raise InputError(f"{where}, field {field!r}: expected text, got {type(value).__name__}{remedy}")
    if (not value and not empty) or not (blank or value.strip()):
        raise InputError(f"{where}, field {field!r}: {'nothing but white space' if value else 'empty'}")
    try:
        if len(value.encode()) > MAX_TEXT_BYTES:
            refuse_long(len(value.encode()), f"{where}, field {field!r}")
    except UnicodeEncodeError:
        raise InputError(f"{where}, field {field!r}: holds half of a surrogate pair, which is not valid text") from None
    return value


def refuse_long(n_bytes: int, where: str) -> None:
    """Refuse a text that is longer than a tokenizer has memory for.

    Args:
        n_bytes: of the text.
        where: for messages.

    Raises:
        InputError: it is.
    """
    if n_bytes > MAX_TEXT_BYTES:
        raise InputError(
            f"{where}: longer than {MAX_TEXT_BYTES:,} bytes, each of which takes a tokenizer 300 bytes of memory; "
            "cut it into documents, one a file or a line of JSONL"
        )


def name_of(row: Mapping[str, Any], field: str, where: str, *, is_id: bool = False) -> str:
    """A name: text, or an integer; of an id, any number and a date, too."""
    value = field_of(row, field, where)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if is_id and isinstance(value, date):  # and times
        return value.isoformat()
    if is_id and isinstance(value, float) and math.isfinite(value):
        return repr(value)
    name = text_of(row, field, where)
    if len(name) > MAX_ID_CHARACTERS:
        raise InputError(f"{where}, field {field!r}: {len(name)} characters long, at most {MAX_ID_CHARACTERS} allowed")
    return name


def value_of(row: Mapping[str, Any], field: str, where: str) -> FieldValue:
    value = field_of(row, field, where)
    if isinstance(value, str):
        return name_of(row, field, where)
    if not isinstance(value, bool | int | float):
        kind = type(value).__name__
        raise InputError(f"{where}, field {field!r}: expected text, a number or true or false, got {kind}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}, field {field!r}: {value} is not a finite number")
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise InputError(f"{where}, field {field!r}: an integer beyond 64 bits, use text")
    return value
