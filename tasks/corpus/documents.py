"""Documents and queries as they are read, and the checks every one of them must pass."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dataworth.storage.corpus import FieldValue
from dataworth.storage.errors import InputError
from dataworth.storage.names import folded
from dataworth.storage.schema import ALL_QUERIES
from dataworth.storage.spelling import setting

__all__ = [
    "MAX_TEXT_BYTES",
    "Document",
    "Query",
    "document",
    "query",
    "refuse_half",
    "refuse_long",
    "short",
    "told_apart",
    "unique",
]

# Of one text. A tokenizer and what is kept of its tokens take 150 to 300 bytes of memory for each (measured: 280 with a
# vocabulary of 300): 10 GB at most.
MAX_TEXT_BYTES = 2**25
MAX_ID_CHARACTERS = 10_000
LARGEST_INTEGER = 2**63 - 1

# Two fields that are trained on as one text: what is asked, what is said.
HALVES = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"))

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
        InputError: a field is missing, null, empty or of a wrong type, or half of a text.
    """
    refuse_half(row, fields["text"], where)
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
    completion = None if row.get("completion") is None else _text(row, "completion", where, blank=True)
    name = _name(row, "id", where)
    if name == ALL_QUERIES:
        raise InputError(f"{where}, field 'id': {ALL_QUERIES!r} stands for all queries together; use another")
    return Query(id=name, prompt=_text(row, "prompt", where), completion=completion, where=where)


def refuse_half(names: Collection[str], text: str, where: str) -> None:
    """Refuse to take one half of a prompt and its completion for the text: a model was trained on both together.

    Args:
        names: of all fields.
        text: the one that holds the text.
        where: file and line.

    Raises:
        InputError: the other half is there, too.
    """
    for pair in HALVES:
        if text in pair and pair[0] in names and pair[1] in names:
            raise InputError(
                f"{where}, field {text!r}: {pair[0]} and {pair[1]} are halves of one text, and a corpus of such pairs "
                f"is not read yet; join them into one field and name that by {setting('corpus.text')}"
            )


def unique(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, refused at the first id that came before, or that looks the same as one.

    Raises:
        InputError: a duplicate id.
    """
    seen: dict[str, tuple[str, str]] = {}
    for item in items:
        key = _key(seen, item.id, "id", item.where)
        if key in seen:
            raise InputError(f"{item.where}, field 'id': {short(item.id)} was already used at {seen[key][1]}")
        seen[key] = item.id, item.where
        yield item


def told_apart(documents: Iterable[Document], kept: Sequence[str]) -> Iterator[Document]:
    """The same documents, refused where two sources, or two values of a field to group by, look the same.

    They would be two in every value and share, and one to whoever is paid by them; which of the two spellings is meant,
    or whether both are, only who owns the corpus can say.

    Raises:
        InputError: names both, and where they are.
    """
    seen: dict[str, dict[str, tuple[str, str]]] = {name: {} for name in ("source", *kept)}
    for each in documents:
        key = _key(seen["source"], each.source, "source", each.where)
        seen["source"].setdefault(key, (each.source, each.where))
        for name in kept:
            value = each.fields[name]
            if isinstance(value, str):
                seen[name].setdefault(_key(seen[name], value, name, each.where), (value, each.where))
        yield each


def _key(seen: Mapping[str, tuple[str, str]], name: str, field: str, where: str) -> str:
    """What a name has in common with those that look the same, of which there is none but itself."""
    key = folded(name)
    before, place = seen.get(key, (name, where))
    if before != name:
        raise InputError(
            f"{where}, field {field!r}: {_spelt(name)} looks the same as {_spelt(before)} at {place}, and is not "
            "(white space, unseen characters or Unicode forms differ); write both alike"
        )
    return key


def _spelt(name: str) -> str:
    """With every character that might be another as its number."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")


def _field(row: Mapping[str, Any], field: str, where: str) -> Any:
    if field not in row:
        known = ", ".join(sorted(str(name) for name in row)) or "none"
        raise InputError(f"{where}, field {field!r}: missing (fields there: {short(known)})")
    if row[field] is None:
        raise InputError(f"{where}, field {field!r}: null")
    return row[field]


def _text(row: Mapping[str, Any], field: str, where: str, *, blank: bool = False) -> str:
    value = _field(row, field, where)
    if not isinstance(value, str):
        turns = isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value)
        remedy = " of objects, as conversations are; write its turns as one text, as the model saw it" if turns else ""
        raise InputError(f"{where}, field {field!r}: expected text, got {type(value).__name__}{remedy}")
    if not value or not (blank or value.strip()):
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


def _name(row: Mapping[str, Any], field: str, where: str) -> str:
    value = _field(row, field, where)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    name = _text(row, field, where)
    if len(name) > MAX_ID_CHARACTERS:
        raise InputError(f"{where}, field {field!r}: {len(name)} characters long, at most {MAX_ID_CHARACTERS} allowed")
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
