"""Documents and queries as windows of tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from storage.corpus import TokenisedDocument
from storage.errors import InputError
from tasks.corpus.documents import Document, short

__all__ = ["class_number", "classified_text", "tokenised_document", "tokenised_query", "window_bounds"]


def window_bounds(n_tokens: int, max_length: int) -> list[tuple[int, int]]:
    """(start, length) of consecutive windows without overlap; a last one of fewer than 2 tokens is dropped.

    Args:
        n_tokens: tokens of the document.
        max_length: tokens of a window, at least 2.
    """
    starts = range(0, n_tokens, max_length)
    return [(start, min(max_length, n_tokens - start)) for start in starts if n_tokens - start >= 2]


def _encoded(tokenizer: Any, text: str, *, special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and the characters each covers; without a fast tokenizer every token covers the whole text."""
    encoding = tokenizer(
        text, add_special_tokens=special_tokens, return_offsets_mapping=tokenizer.is_fast, verbose=False
    )
    ids: list[int] = encoding["input_ids"]
    offsets: Sequence[tuple[int, int]] = (
        encoding["offset_mapping"] if tokenizer.is_fast else [(0, len(text))] * len(ids)
    )
    return ids, list(offsets)


def _characters(offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """First and end character of a run of tokens; special tokens cover none."""
    covered = [(start, end) for start, end in offsets if end > start]
    return (min(start for start, _ in covered), max(end for _, end in covered)) if covered else (0, 0)


def tokenised_document(tokenizer: Any, document: Document, max_length: int) -> TokenisedDocument:
    """A document cut into windows of at most `max_length` tokens.

    Args:
        tokenizer: a transformers tokenizer; its own default special tokens are added.
        document: the text.
        max_length: tokens of a window.
    """
    ids, offsets = _encoded(tokenizer, document.text, special_tokens=True)
    bounds = window_bounds(len(ids), max_length)
    kept = sum(length for _, length in bounds)
    return TokenisedDocument(
        document_id=document.id,
        source=document.source,
        text=document.text,
        tokens=np.asarray(ids[:kept], np.int32),
        windows=tuple((start, length, 0, *_characters(offsets[start : start + length])) for start, length in bounds),
        fields=document.fields,
    )


def tokenised_query(
    tokenizer: Any, name: str, prompt: str, completion: str, where: str, max_length: int | None
) -> TokenisedDocument:
    """A query as one window whose loss is taken on the completion's tokens.

    Prompt (with special tokens) and completion (without) are tokenised separately and joined.

    Args:
        tokenizer: a transformers tokenizer.
        name: id of the query.
        prompt, completion: its two texts.
        where: file and line, for messages.
        max_length: most tokens the model reads; None if it states none.

    Raises:
        InputError: the completion has no token, or the query is longer than the model reads.
    """
    prompt_ids, _ = _encoded(tokenizer, prompt, special_tokens=True)
    completion_ids, _ = _encoded(tokenizer, completion, special_tokens=False)
    ids = prompt_ids + completion_ids
    if not completion_ids or len(ids) < 2:
        raise InputError(f"{where}: query {short(name)} has no token to explain")
    if max_length is not None and len(ids) > max_length:
        raise InputError(f"{where}: query {short(name)} has {len(ids)} tokens, the model reads at most {max_length}")
    text = prompt + completion
    return TokenisedDocument(
        document_id=name,
        source="",
        text=text,
        tokens=np.asarray(ids, np.int32),
        windows=((0, len(ids), len(prompt_ids), 0, len(text)),),
        n_prompt_characters=len(prompt),
    )


def class_number(label: str, labels: Sequence[str], where: str) -> int:
    """The number of a class given by its name or its number.

    Args:
        label: as given.
        labels: names of the model's classes, in their order.
        where: file and line, for messages.

    Raises:
        InputError: the model has no such class.
    """
    if label in labels:
        return list(labels).index(label)
    if label.isdecimal() and len(label) < 10 and int(label) < len(labels):
        return int(label)
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
    encoding = tokenizer(
        text,
        truncation=max_length is not None,
        max_length=max_length,
        return_offsets_mapping=tokenizer.is_fast,
        verbose=False,
    )
    ids = encoding["input_ids"]
    first, end = _characters(encoding["offset_mapping"] if tokenizer.is_fast else [(0, len(text))])
    return TokenisedDocument(
        document_id=document_id,
        source=source,
        text=text,
        tokens=np.asarray(ids, np.int32),
        windows=((0, len(ids), 0, first, end),) if ids else (),
        label=label,
    )
