"""Conversations as their checkpoint's chat template writes them, and which of the tokens a training teaches.

What is taught is what TRL's SFTTrainer teaches: of `messages` the assistant's turns, by the template's own marks
({% generation %}); of a prompt and its completion all from the first token that the prompt alone does not have.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np
from jaxtyping import Bool

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.corpus.rejected import SettingError
from dataworth.tasks.corpus.taught import Loss
from dataworth.tasks.model.tokens import panics_told
from dataworth.tasks.visible import reason, short

__all__ = ["ASSISTANT", "Chat", "Rendered", "asked_tokens", "rendered"]

ASSISTANT = "assistant"
# Marks of what the assistant says, in a template; its own words, or with a minus that strips white space.
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Chat:
    """A conversation.

    Args:
        messages: each with `role` and `content`, and whatever else the template reads.
        n_prompt: so many of them are a prompt that was given apart; 0: none was.
        tools: descriptions of functions that the model may call; None: none.
        options: further variables of the template.
    """

    messages: Sequence[Mapping[str, Any]]
    n_prompt: int = 0
    tools: Sequence[Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model reads it.

    Args:
        text: with the template's signs.
        ids: its tokens; nothing is added to what the template writes.
        offsets: (first, end) characters that each covers.
        taught: (n_tokens,) whether its loss is taken.
    """

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    taught: Bool[np.ndarray, " t"]


def rendered(tokenizer: Any, chat: Chat, template: str | None, loss: Loss, where: str) -> Rendered:
    """A conversation as a training reads it.

    Args:
        tokenizer: a transformers tokenizer.
        chat: the conversation.
        template: in the place of the tokenizer's own; None: its own.
        loss: of which tokens; `answers`: all of the assistant's, or of what follows the prompt; `last`: the
            assistant's last turn.
        where: file and line, for messages.

    Raises:
        InputError: there is no template, it refuses the conversation, or does not tell what the assistant says.
    """
    write = _Template(tokenizer, chat, template, where)
    marked = loss != "all" and not chat.n_prompt and write.has_marks
    text = write(len(chat.messages))
    ids, offsets, marks = write.tokens(len(chat.messages), text, marked=marked)
    if loss == "all":
        taught = np.ones(len(ids), bool)
    elif chat.n_prompt:
        prompt = write.tokens(chat.n_prompt, write(chat.n_prompt, answered=True), answered=True)[0]
        taught = np.arange(len(ids)) >= _common(prompt, ids)
    elif marked:
        taught = marks
    else:
        taught = _covering(write.turns(text), offsets)
    return Rendered(text, ids, offsets, _last(taught) if loss == "last" else taught)


def asked_tokens(tokenizer: Any, chat: Chat, template: str | None, where: str) -> tuple[str, list[int]]:
    """A conversation up to where the assistant is to speak, as text and tokens.

    Raises:
        InputError: as `rendered`.
    """
    write = _Template(tokenizer, chat, template, where)
    text = write(len(chat.messages), answered=True)
    return text, write.tokens(len(chat.messages), text, answered=True)[0]


class _Template:
    """What a template makes of the first messages of a conversation."""

    def __init__(self, tokenizer: Any, chat: Chat, template: str | None, where: str) -> None:
        if not tokenizer.is_fast:
            raise SettingError(f"{where}: a conversation needs a fast tokenizer, which the model has not")
        self._tokenizer, self._chat, self._where = tokenizer, chat, where
        taken = sorted(set(chat.options) & (set(signature(tokenizer.apply_chat_template).parameters) - {"kwargs"}))
        if taken:
            raise InputError(f"{where}: the variable {short(taken[0])} would say how tokens are made; leave it out")
        try:
            self._template = tokenizer.get_chat_template(template, chat.tools)
        except ValueError:
            raise SettingError(
                f"{where}: a conversation, and the model has no chat template that writes it; pass "
                f"{setting('corpus.chat_template')} FILE"
            ) from None

    @property
    def has_marks(self) -> bool:
        """Does it mark what the assistant says?"""
        return MARKS.search(self._template) is not None

    def __call__(self, n_messages: int, *, answered: bool = False) -> str:
        return str(self._applied(n_messages, answered=answered, tokenize=False))

    def tokens(
        self, n_messages: int, text: str, *, answered: bool = False, marked: bool = False
    ) -> tuple[list[int], list[tuple[int, int]], Bool[np.ndarray, " t"]]:
        """Tokens, what they cover, and which of them are marked, of a text that this template made."""
        forerunner = getattr(self._tokenizer, "forerunner", None)
        if forerunner is not None:
            forerunner.check(text, self._where)
        with panics_told(self._where):
            read = self._applied(
                n_messages,
                answered=answered,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=marked,
                tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
            )
        marks = np.asarray(read["assistant_masks"], bool) if marked else np.zeros(len(read["input_ids"]), bool)
        return list(read["input_ids"]), [tuple(span) for span in read["offset_mapping"]], marks

    def turns(self, text: str) -> list[tuple[int, int]]:
        """(first, end) characters of each of the assistant's turns, from where it is to speak to where it has spoken.

        Raises:
            InputError: the template writes a turn otherwise where others follow it.
        """
        spans = []
        for number, message in enumerate(self._chat.messages):
            if message["role"] != ASSISTANT:
                continue
            until = self(number + 1)
            before = self(number, answered=True) if number else self._first(until)
            if before is None or not until.startswith(before) or not text.startswith(until):
                raise InputError(
                    f"{self._where}: the chat template writes turns otherwise where others follow, so that it is not "
                    f"known which tokens are the assistant's; pass {setting('corpus.chat_template')} FILE, one with "
                    f"{{% generation %}}, or {setting('corpus.loss')} all"
                )
            spans.append((len(before), len(until)))
        return spans

    def _first(self, until: str) -> str | None:
        """What stands before the words of a first turn that is the assistant's; None where that is not known."""
        content = self._chat.messages[0].get("content")
        said = content.strip() if isinstance(content, str) else ""
        return until.partition(said)[0] if said and until.count(said) == 1 else None

    def _applied(self, n_messages: int, *, answered: bool, **how: Any) -> Any:
        given = [dict(message) for message in self._chat.messages[:n_messages]]
        try:
            return self._tokenizer.apply_chat_template(
                given,
                tools=self._chat.tools,
                chat_template=self._template,
                add_generation_prompt=answered,
                **{**self._chat.options, **how},
            )
        except InputError:
            raise
        except Exception as error:  # the template decides which of all errors it meets
            raise InputError(f"{self._where}: the chat template refuses this conversation ({reason(error)})") from None


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def _covering(spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> Bool[np.ndarray, " t"]:
    """Which tokens have a character of a span."""
    return np.array(
        [any(first < end and start < until for start, end in spans) and until > first for first, until in offsets], bool
    )


def _last(taught: Bool[np.ndarray, " t"]) -> Bool[np.ndarray, " t"]:
    """Of those that are taught the last ones without another between them."""
    if not taught.any():
        return taught
    end = int(np.flatnonzero(taught)[-1]) + 1
    before = np.flatnonzero(~taught[:end])
    kept = np.zeros_like(taught)
    kept[(int(before[-1]) + 1 if len(before) else 0) : end] = True
    return kept
