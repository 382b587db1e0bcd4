"""A text as the tokens of a checkpoint's tokenizer, and which of them the tokenizer added to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dataworth.storage.errors import InputError

__all__ = ["Encoded", "encoded", "panics_told"]


@dataclass(frozen=True)
class Encoded:
    """The tokens of a text, with those that the tokenizer adds to every text at its beginning and end.

    Args:
        ids: all of them.
        offsets: (first, end) characters that each covers; added ones cover none. Without a fast tokenizer every other
            covers the whole text.
        n_before, n_after: added at the beginning, and at the end.
        repeated: the text itself begins or ends with what would be added (`<s>` in a rendered chat), which is there
            once: it was not added.
        cut: the text has more tokens than there was room for.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    n_before: int
    n_after: int
    repeated: bool
    cut: bool

    @property
    def end(self) -> int:
        """Place of the first token that was added at the end."""
        return len(self.ids) - self.n_after


@contextmanager
def panics_told(where: str = "") -> Iterator[None]:
    """A panic of the tokenizer's library, which is no Exception, as a sentence; `where` is its beginning."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{where}{': ' if where else ''}the tokenizer panics ({said})") from None


def encoded(tokenizer: Any, text: str, max_length: int | None = None, where: str = "") -> Encoded:
    """A text as training saw it: with the tokens that the tokenizer adds by itself, none of them twice.

    Args:
        tokenizer: a transformers tokenizer.
        text: any.
        max_length: most tokens, added ones included; the text's others are cut off. None for no limit.
        where: file and line, for messages.

    Raises:
        InputError: the tokenizer panics, or needs more time or memory for this text than it should.
    """
    forerunner = getattr(tokenizer, "forerunner", None)
    if forerunner is not None:
        forerunner.check(text, where)
    with panics_told(where):
        encoding = tokenizer(
            text,
            truncation=max_length is not None,
            max_length=max_length,
            return_offsets_mapping=tokenizer.is_fast,
            return_special_tokens_mask=True,
            verbose=False,
        )
    ids: list[int] = list(encoding["input_ids"])
    # One in Python may leave out a repeated end by itself, but counts it.
    added: list[int] = list(encoding["special_tokens_mask"])[-len(ids) :] if ids else []
    covered = encoding["offset_mapping"] if tokenizer.is_fast else [(0, len(text))] * len(ids)
    offsets = [(0, 0) if of_tokenizer else tuple(span) for of_tokenizer, span in zip(added, covered, strict=True)]
    n_before = next((place for place, is_added in enumerate(added) if not is_added), len(ids))
    n_after = next((place for place, is_added in enumerate(reversed(added)) if not is_added), 0)
    end = len(ids) - n_after
    begins_so = 0 < n_before <= end - n_before and ids[n_before : 2 * n_before] == ids[:n_before]
    ends_so = 0 < n_after <= end - n_before and ids[end - n_after : end] == ids[end:]
    first, last = n_before if begins_so else 0, end if ends_so else len(ids)
    return Encoded(
        ids=ids[first:last],
        offsets=offsets[first:last],
        n_before=0 if begins_so else n_before,
        n_after=0 if ends_so else n_after,
        repeated=begins_so or ends_so,
        cut=max_length is not None and len(ids) >= max_length and _is_longer(tokenizer, text, encoding, max_length),
    )


def _is_longer(tokenizer: Any, text: str, encoding: Any, max_length: int) -> bool:
    if tokenizer.is_fast:
        return bool(encoding.encodings[0].overflowing)
    return len(tokenizer(text, verbose=False)["input_ids"]) > max_length
