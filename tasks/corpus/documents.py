"""Documents and queries as they are read, and the checks every one of them must pass."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from storage.corpus import FieldValue
from storage.errors import InputError
from storage.schema import ALL_QUERIES

__all__ = ["Document", "Query", "document", "query", "short", "unique"]

MOST_ID_CHARACTERS = 10_000
LARGEST_INTEGER = 2**63 - 1

Item = TypeVar("Item", "Document", "Query")


@dataclass(frozen=True)
class Document:
    """A text with an id and a source.

    Args:
        id, source, text: as given.
        where: file and line it was read from, for messages.
        label: class as given, where labels are asked for.
        fields: further fields by name, where some are kept.
    """

    id: str
    source: str
    text: str
    where: str
    label: str | None = None
    fields: Mapping[str, FieldValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Query:
    """What is explained: a prompt, and its completion unless the model is to write it."""

    id: str
    prompt: str
    completion: str | None
    where: str


def document(row: Mapping[str, Any], fields: Mapping[str, str], where: str, kept: Sequence[str] = ()) -> Document:
    """A checked document.

    Args:
        row: field name → value.
        fields: `id`, `source`, `text`, and `label` where it is wanted → the names they have in `row`.
        where: file and line.
        kept: further fields to keep.

    Raises:
        InputError: a field is missing, empty or of a wrong type.
    """
    return Document(
        id=_name(row, fields["id"], where),
        source=_name(row, fields["source"], where),
        text=_text(row, fields["text"], where),
        where=where,
        label=_name(row, fields["label"], where) if "label" in fields else None,
        fields={name: _value(row, name, where) for name in kept},
    )


def query(row: Mapping[str, Any], where: str) -> Query:
    """A checked query with `id`, `prompt` and optionally `completion`.

    Raises:
        InputError: a field is missing, empty or of a wrong type, or unknown.
    """
    unknown = sorted(set(row) - {"id", "prompt", "completion"})
    if unknown:
        raise InputError(
            f"{where}, field {short(unknown[0])}: unknown; a query has id, prompt and optionally completion"
        )
    completion = None if row.get("completion") is None else _text(row, "completion", where)
    name = _name(row, "id", where)
    if name == ALL_QUERIES:
        raise InputError(f"{where}, field 'id': {ALL_QUERIES!r} stands for all queries together; use another")
    return Query(id=name, prompt=_text(row, "prompt", where), completion=completion, where=where)


def unique(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, refused at the first id that came before.

    Raises:
        InputError: a duplicate id.
    """
    seen: dict[str, str] = {}
    for item in items:
        if item.id in seen:
            raise InputError(f"{item.where}, field 'id': {short(item.id)} was already used at {seen[item.id]}")
        seen[item.id] = item.where
        yield item


def _field(row: Mapping[str, Any], field: str, where: str) -> Any:
    if field not in row or row[field] is None:
        known = ", ".join(sorted(str(name) for name in row)) or "none"
        raise InputError(f"{where}, field {field!r}: missing (fields there: {short(known)})")
    return row[field]


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    value = _field(row, field, where)
    if not isinstance(value, str):
        raise InputError(f"{where}, field {field!r}: expected text, got {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{where}, field {field!r}: empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}, field {field!r}: holds half of a surrogate pair, which is not valid text") from None
    return value


def _name(row: Mapping[str, Any], field: str, where: str) -> str:
    value = _field(row, field, where)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    name = _text(row, field, where)
    if len(name) > MOST_ID_CHARACTERS:
        raise InputError(f"{where}, field {field!r}: {len(name)} characters long, at most {MOST_ID_CHARACTERS} allowed")
    return name


def _value(row: Mapping[str, Any], field: str, where: str) -> FieldValue:
    value = _field(row, field, where)
    if isinstance(value, str):
        return _name(row, field, where)
    if not isinstance(value, bool | int | float):
        kind = type(value).__name__
        raise InputError(f"{where}, field {field!r}: expected text, a number or true or false, got {kind}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}, field {field!r}: {value} is not a finite number")
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise InputError(f"{where}, field {field!r}: an integer beyond 64 bits, use text")
    return value


def short(text: str) -> str:
    """Text of a message, quoted and cut."""
    return repr(text if len(text) <= 80 else text[:77] + "…")
