"""Documents and queries as windows of tokens."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dataworth.storage.corpus import TokenisedDocument
from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.corpus.chats import Chat, rendered
from dataworth.tasks.corpus.documents import Document
from dataworth.tasks.corpus.taught import Taught
from dataworth.tasks.model.tokens import Encoded, encoded
from dataworth.tasks.visible import short

__all__ = [
    "CUT",
    "NOTHING_TAUGHT",
    "REPEATED",
    "answered_query",
    "asked_chat",
    "class_number",
    "classified_text",
    "prompt_tokens",
    "tokenised_document",
    "tokenised_query",
    "window_bounds",
]


REPEATED = "begin or end with what the tokenizer adds to every text: it is not added a second time"
NOTHING_TAUGHT = "have no token that is taught: they get no score"
CUT = "have more tokens than the model reads, or than {}: what is beyond is left out"


def window_bounds(n_tokens: int, max_length: int) -> list[tuple[int, int]]:
    """(start, length) of consecutive windows without overlap; a last one of fewer than 2 tokens is dropped.

    Args:
        n_tokens: tokens of the document.
        max_length: tokens of a window, at least 2.
    """
    starts = range(0, n_tokens, max_length)
    return [(start, min(max_length, n_tokens - start)) for start in starts if n_tokens - start >= 2]


def _characters(offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """First and end character of a run of tokens; special tokens cover none."""
    covered = [(start, end) for start, end in offsets if end > start]
    return (min(start for start, _ in covered), max(end for _, end in covered)) if covered else (0, 0)


def tokenised_document(
    tokenizer: Any, document: Document, max_length: int, taught: Taught | None = None
) -> TokenisedDocument:
    """A document cut into windows of at most `max_length` tokens; of a conversation or a pair there is one, cut off.

    Args:
        tokenizer: a transformers tokenizer; its own default special tokens are added, none of them twice.
        document: the text.
        max_length: tokens of a window.
        taught: how a training read it; None: as the defaults of `Taught` say.

    Raises:
        InputError: a conversation that cannot be written as the model reads it.
    """
    taught = taught or Taught()
    if document.chat is not None:
        chat = rendered(tokenizer, document.chat, taught.template, taught.loss, document.where)
        return _one_window(document, chat.text, chat.ids, chat.offsets, chat.taught, max_length)
    if document.n_prompt is not None:
        return _pair(tokenizer, document, document.n_prompt, max_length, taught)
    if taught.eos:
        document = replace(document, text=_ended(tokenizer, document.text))
    text = encoded(tokenizer, document.text, where=document.where)
    bounds = window_bounds(len(text.ids), max_length)
    kept = sum(length for _, length in bounds)
    return TokenisedDocument(
        document_id=document.id,
        source=document.source,
        text=document.text,
        tokens=np.asarray(text.ids[:kept], np.int32),
        windows=tuple(
            (start, length, 0, *_characters(text.offsets[start : start + length])) for start, length in bounds
        ),
        fields=document.fields,
        remarks=_remarks(text),
    )


def _pair(tokenizer: Any, document: Document, n_prompt: int, max_length: int, taught: Taught) -> TokenisedDocument:
    """Taught from the first token on that the prompt alone does not have, as in TRL."""
    text = document.text if taught.eos is False else _ended(tokenizer, document.text)
    read = encoded(tokenizer, text, where=document.where)
    alone = encoded(tokenizer, document.text[:n_prompt], where=document.where)
    begun = next((n for n, (a, b) in enumerate(zip(alone.ids, read.ids, strict=False)) if a != b), len(alone.ids))
    first = 0 if taught.loss == "all" else begun
    is_taught = np.arange(len(read.ids)) >= first
    made = _one_window(document, text, read.ids, read.offsets, is_taught, max_length)
    return replace(made, remarks=(*made.remarks, *_remarks(read)))


def _ended(tokenizer: Any, text: str) -> str:
    """With the end token, unless it is there."""
    end = tokenizer.eos_token
    return text if not end or text.endswith(end) else text + end


def _one_window(
    document: Document,
    text: str,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    taught: np.ndarray,
    max_length: int,
) -> TokenisedDocument:
    """One window, cut off at its end; without a token that is taught, none."""
    kept, own = np.asarray(ids[:max_length], np.int32), np.asarray(taught[:max_length], bool)
    remarks = (CUT.format(setting("corpus.max_length")),) if len(ids) > max_length else ()
    targets = np.flatnonzero(own[1:]) + 1
    if not len(targets):
        kept, own, remarks = kept[:0], own[:0], (*remarks, NOTHING_TAUGHT)
    n_masked = int(np.flatnonzero(own)[0]) if own.any() else 0
    untaught = ~own & (np.arange(len(own)) >= n_masked)
    return TokenisedDocument(
        document_id=document.id,
        source=document.source,
        text=text,
        tokens=kept,
        windows=((0, len(kept), n_masked, *_characters(offsets[: len(kept)])),) if len(kept) else (),
        fields=document.fields,
        remarks=remarks,
        untaught=untaught if untaught.any() else None,
    )


def asked_chat(
    tokenizer: Any, name: str, chat: Chat, template: str | None, where: str, max_length: int | None
) -> TokenisedDocument:
    """A conversation whose last turn, the assistant's, is explained.

    Args:
        tokenizer: a transformers tokenizer.
        name: id of the query.
        chat: the conversation.
        template: of the chat; None: the tokenizer's own.
        where: file and line, for messages.
        max_length: most tokens the model reads; None if it states none.

    Raises:
        InputError: as `dataworth.tasks.corpus.chats.rendered`, or the query is longer than the model reads.
    """
    read = rendered(tokenizer, chat, template, "last", where)
    targets = np.flatnonzero(read.taught)
    if not len(targets) or targets[0] == 0:
        raise InputError(f"{where}: query {short(name)} has no token to explain")
    first, end = int(targets[0]), int(targets[-1]) + 1  # what the template writes after the turn explains nothing
    begun = read.offsets[first][0]
    return answered_query(name, read.text[:begun], read.text[begun:], read.ids[:end], first, where, max_length)


def _remarks(text: Encoded) -> tuple[str, ...]:
    said = ((text.repeated, REPEATED), (text.cut, CUT.format(setting("corpus.max_length"))))
    return tuple(remark for holds, remark in said if holds)


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a prompt that is to be completed: what is added at a text's beginning, nothing at its end.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: the text.
    """
    text = encoded(tokenizer, prompt)
    return text.ids[: text.end]


def tokenised_query(
    tokenizer: Any, name: str, prompt: str, completion: str, where: str, max_length: int | None
) -> TokenisedDocument:
    """A query as one window whose loss is taken on the completion's tokens.

    Prompt and completion are tokenised as one text, as training saw it: with what the tokenizer adds at a text's
    beginning, without what it adds at the end. A token that holds characters of both belongs to the completion.

    Args:
        tokenizer: a transformers tokenizer.
        name: id of the query.
        prompt, completion: its two texts.
        where: file and line, for messages.
        max_length: most tokens the model reads; None if it states none.

    Raises:
        InputError: the completion has no token, the prompt none of its own, or the query is longer than the model
            reads.
    """
    text = encoded(tokenizer, prompt + completion, where=where)
    ids = text.ids[: text.end]
    if tokenizer.is_fast:
        n_prompt = next((place for place, (_, end) in enumerate(text.offsets) if end > len(prompt)), len(ids))
    else:
        alone = prompt_tokens(tokenizer, prompt)
        n_prompt = next((place for place, (a, b) in enumerate(zip(ids, alone, strict=False)) if a != b), len(alone))
    if n_prompt >= len(ids):
        raise InputError(f"{where}: query {short(name)} has no token to explain")
    if n_prompt == 0:
        raise InputError(
            f"{where}: query {short(name)}: the tokenizer makes one token of prompt and completion, so that nothing "
            "comes before what is to be explained; give a longer prompt"
        )
    return replace(answered_query(name, prompt, completion, ids, n_prompt, where, max_length), remarks=_remarks(text))


def answered_query(
    name: str, prompt: str, completion: str, ids: Sequence[int], n_prompt: int, where: str, max_length: int | None
) -> TokenisedDocument:
    """A query as the tokens that it is made of, such as those the model itself said, whatever text they make.

    Args:
        name: id of the query.
        prompt, completion: its two texts, for people.
        ids: of the prompt, and of the completion.
        n_prompt: how many of them are the prompt's.
        where: file and line, for messages.
        max_length: most tokens the model reads; None if it states none.

    Raises:
        InputError: the query is longer than the model reads.
    """
    if max_length is not None and len(ids) > max_length:
        raise InputError(f"{where}: query {short(name)} has {len(ids)} tokens, the model reads at most {max_length}")
    text = prompt + completion
    return TokenisedDocument(
        document_id=name,
        source="",
        text=text,
        tokens=np.asarray(ids, np.int32),
        windows=((0, len(ids), n_prompt, 0, len(text)),),
        n_prompt_characters=len(prompt),
    )


def class_number(label: str, labels: Sequence[str], where: str) -> int:
    """The number of a class given by its name or its number, or by `#` and its number.

    Args:
        label: as given.
        labels: names of the model's classes, in their order.
        where: file and line, for messages.

    Raises:
        InputError: the model has no such class, or it may be one of several: classes named "1", "2", … from 0 on, or
            alike.
    """
    digits = label.removeprefix("#")
    numbered = {int(digits)} if digits.isdecimal() and len(digits) < 10 and int(digits) < len(labels) else set()
    named = set() if label.startswith("#") and numbered else {n for n, name in enumerate(labels) if name == label}
    meant = sorted(named | numbered)
    if len(meant) == 1:
        return meant[0]
    if meant:
        classes = " or ".join(f"class {number} ({short(labels[number])})" for number in meant)
        written = " or ".join(f"#{number}" for number in meant)
        raise InputError(f"{where}: {short(label)} may be {classes} of the model; write {written}")
    known = ", ".join(labels[:8]) + (" …" if len(labels) > 8 else "")
    raise InputError(f"{where}: the model has no class {short(label)}; it knows {known}, or 0 to {len(labels) - 1}")


def classified_text(
    tokenizer: Any, document_id: str, source: str, text: str, label: int, max_length: int | None
) -> TokenisedDocument:
    """A text as one window whose target is a class; what is beyond `max_length` tokens is cut off.

    Args:
        tokenizer: a transformers tokenizer; its own default special tokens are added.
        document_id, source, text: of the document.
        label: number of its class.
        max_length: most tokens; None for no limit.
    """
    read = encoded(tokenizer, text, max_length)
    ids = read.ids
    first, end = _characters(read.offsets)
    return TokenisedDocument(
        document_id=document_id,
        source=source,
        text=text,
        tokens=np.asarray(ids, np.int32),
        windows=((0, len(ids), 0, first, end),) if ids else (),
        label=label,
        remarks=_remarks(read),
    )
