"""Documents and queries as they are read, and the checks every one of them must pass."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from dataworth.storage.corpus import FieldValue
from dataworth.storage.errors import InputError
from dataworth.storage.names import folded
from dataworth.storage.schema import ALL_QUERIES
from dataworth.storage.spelling import setting
from dataworth.tasks.corpus.chats import ASSISTANT, Chat
from dataworth.tasks.corpus.fields import OPTIONS, TOOLS, Fields, has_field
from dataworth.tasks.corpus.rejected import Rejected
from dataworth.tasks.corpus.values import field_of, name_of, refuse_long, text_of, value_of
from dataworth.tasks.visible import short

__all__ = ["Document", "Query", "checked", "document", "query", "unique"]

MAX_TURNS = 10_000

Item = TypeVar("Item", "Document", "Query")


@dataclass(frozen=True)
class Document:
    """A text with an id and a source.

    Args:
        id, source, text: as given; the text of a pair is both its halves, that of a conversation is made later.
        where: file and line it was read from, for messages.
        label: class as given, where labels are asked for.
        fields: further fields by name, where some are kept.
        n_prompt: characters of a pair's first half; None of other texts.
        chat: the conversation, in the place of a text.
        by_content: was none given, so that the id is made of the content?
    """

    id: str
    source: str
    text: str
    where: str
    label: str | None = None
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    n_prompt: int | None = None
    chat: Chat | None = None
    by_content: bool = False


@dataclass(frozen=True)
class Query:
    """What is explained: a prompt, and its completion unless the model writes it; or a conversation's last turn."""

    id: str
    prompt: str
    completion: str | None
    where: str
    chat: Chat | None = None


def document(row: Mapping[str, Any], fields: Fields, where: str) -> Document:
    """A checked document; one without an id has that of its content, the same for the same text.

    Args:
        row: field name → value.
        fields: their names.
        where: file and line.

    Raises:
        InputError: a field is missing, null, empty or of a wrong type, or half of a text.
    """
    given = [name for name, value in row.items() if value is not None]
    form = fields.form_of(given if fields.is_any(given) else row, where)
    text, n_prompt, chat = "", None, None
    if form == "messages":
        chat = _chat(row, _messages(row, fields.messages, where), 0, where)
    elif form == "pairs" and isinstance(field_of(row, fields.prompt, where), list):
        turns = [_messages(row, name, where) for name in (fields.prompt, fields.completion)]
        chat = _chat(row, [*turns[0], *turns[1]], len(turns[0]), where)
    elif form == "pairs":
        asked = text_of(row, fields.prompt, where, blank=True)
        text, n_prompt = asked + text_of(row, fields.completion, where, blank=True), len(asked)
    else:
        text = text_of(row, fields.text, where)
    if chat is not None and fields.labelled:
        raise InputError(f"{where}: a conversation, and a classifier reads texts; pass {setting('corpus.text')}")
    has_id = has_field(row, fields.id) or fields.id != "id"
    return Document(
        id=name_of(row, fields.id, where, is_id=True) if has_id else _content_id(text, chat),
        source=name_of(row, fields.source, where) if fields.owner is None else fields.owner,
        text=text,
        where=where,
        label=name_of(row, fields.label, where) if fields.labelled else None,
        fields={name: value_of(row, name, where) for name in fields.kept},
        n_prompt=n_prompt,
        chat=chat,
        by_content=not has_id,
    )


def _content_id(text: str, chat: Chat | None) -> str:
    said = text if chat is None else json.dumps([chat.messages, chat.tools], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def query(row: Mapping[str, Any], where: str) -> Query:
    """A checked query with `id`, and `prompt` and optionally `completion`, or `messages`.

    Raises:
        InputError: a field is missing, empty or of a wrong type, or unknown.
    """
    of_chat = "messages" in row
    known = {"id", "messages", TOOLS, OPTIONS} if of_chat else {"id", "prompt", "completion"}
    unknown = sorted(set(row) - known)
    if unknown:
        expected = "messages" if of_chat else "prompt and optionally completion, or messages"
        raise InputError(f"{where}, field {short(unknown[0])}: unknown; a query has id, {expected}")
    name = name_of(row, "id", where, is_id=True)
    if name == ALL_QUERIES:
        raise InputError(f"{where}, field 'id': {ALL_QUERIES!r} stands for all queries together; use another")
    if of_chat:
        return Query(name, "", None, where, _chat(row, _messages(row, "messages", where), 0, where))
    completion = None if row.get("completion") is None else text_of(row, "completion", where, blank=True)
    return Query(id=name, prompt=text_of(row, "prompt", where), completion=completion, where=where)


def _chat(row: Mapping[str, Any], messages: list[dict[str, Any]], n_prompt: int, where: str) -> Chat:
    tools, options = _without_nulls(row.get(TOOLS)), _without_nulls(row.get(OPTIONS)) or {}
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            raise InputError(f"{where}, field {TOOLS!r}: broken JSON") from None
    if tools is not None and not isinstance(tools, list):
        raise InputError(f"{where}, field {TOOLS!r}: expected a list of tools, got {type(tools).__name__}")
    if not isinstance(options, dict):
        raise InputError(f"{where}, field {OPTIONS!r}: expected an object, got {type(options).__name__}")
    said = messages if not n_prompt else messages[n_prompt:]
    if not any(message["role"] == ASSISTANT for message in said) and n_prompt:
        raise InputError(f"{where}: the completion has no turn of the {ASSISTANT}")
    return Chat(messages, n_prompt, tools or None, options)


def _messages(row: Mapping[str, Any], field: str, where: str) -> list[dict[str, Any]]:
    """Turns, without the names that a table gives to what only other turns have."""
    value = field_of(row, field, where)
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else type(value).__name__
        raise InputError(f"{where}, field {field!r}: expected a list of messages, got {what}")
    if len(value) > MAX_TURNS:
        raise InputError(f"{where}, field {field!r}: {len(value):,} messages, at most {MAX_TURNS:,} are read")
    turns = []
    n_bytes = 0
    for number, turn in enumerate(value, 1):
        place = f"{where}, field {field!r}, message {number}"
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            hint = " (of `from` and `value`: write them as `role` and `content`)" if _is_shared(turn) else ""
            raise InputError(f"{place}: expected an object with `role` and `content`{hint}")
        content = turn.get("content")
        parts = content if isinstance(content, list) else [content]
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(part, dict) and (part.get("type") != "text" or not isinstance(text, str)):
                raise InputError(f"{place}: has a part that is no text, and only text is read")
            if text is not None:
                n_bytes += len(text_of({"content": text}, "content", place, blank=True, empty=True).encode())
        refuse_long(n_bytes, place)
        turns.append(_without_nulls(turn))
    return turns


def _without_nulls(value: Any) -> Any:
    """Without what is null in its objects, as rows of a table have it where other rows have something."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _is_shared(turn: Any) -> bool:
    return isinstance(turn, dict) and "from" in turn and "value" in turn


def unique(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, refused at the first id that came before, or that looks the same as one.

    Raises:
        InputError: a duplicate id.
    """
    seen: dict[str, tuple[str, str]] = {}
    for item in items:
        _refuse_seen(seen, item)
        yield item


def _refuse_seen(seen: dict[str, tuple[str, str]], item: Document | Query) -> None:
    key = _key(seen, item.id, "id", item.where)
    if key in seen:
        raise InputError(f"{item.where}, field 'id': {short(item.id)} was already used at {seen[key][1]}")
    seen[key] = item.id, item.where


def checked(documents: Iterable[Document], kept: Sequence[str], rejected: Rejected) -> Iterator[Document]:
    """The same documents, without those whose id came before, or where two names look the same.

    Two sources, or two values of a field to group by, that look the same would be two in every value and share, and one
    to whoever is paid by them; which of the two spellings is meant, or whether both are, only who owns the corpus can
    say. Documents without an id, and with the same text, are numbered: they are copies.

    Args:
        documents: as read.
        kept: further fields.
        rejected: takes what is wrong.
    """
    ids: dict[str, tuple[str, str]] = {}
    names: dict[str, dict[str, tuple[str, str]]] = {name: {} for name in ("source", *kept)}
    copies: Counter[str] = Counter()
    for each in documents:
        document = each
        if each.by_content:
            copies[each.id] += 1
            document = each if copies[each.id] == 1 else replace(each, id=f"{each.id}-{copies[each.id]}")
        is_good = False
        with rejected.told():
            _refuse_likeness(names, document, kept)
            _refuse_seen(ids, document)
            is_good = True
        if is_good:
            yield document


def _refuse_likeness(seen: dict[str, dict[str, tuple[str, str]]], document: Document, kept: Sequence[str]) -> None:
    for name in ("source", *kept):
        value = document.source if name == "source" else document.fields[name]
        if isinstance(value, str):
            seen[name].setdefault(_key(seen[name], value, name, document.where), (value, document.where))


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
