"""Vocabulary that a passage shares with a query, the rarer words first.

Which tokens taught is told of the best passages alone. Of the others is shown what a reader would look for.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["MAX_SHARED", "Shared", "Vocabulary"]

MAX_SHARED = 8

# Scripts without spaces between words: there each sign counts as one.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")

# With fewer passages a word in half of them may still be what they are about.
FEW_PASSAGES = 10


@dataclass(frozen=True)
class Shared:
    """What a passage shares with a query.

    Args:
        words: rarest first.
        parts: the passage in pieces, each with whether it is one of the words; together they are its text.
    """

    words: tuple[str, ...]
    parts: tuple[tuple[str, bool], ...]


def _words(text: str) -> set[str]:
    """Distinct words, upper and lower case as one, without numbers and single letters."""
    words = {match.casefold() for match in WORD.findall(text)}
    return {word for word in words if not word.isdigit() and (len(word) > 1 or re.match(f"[{UNSPACED}]", word))}


class Vocabulary:
    """How many of some passages have a word.

    Args:
        passages: their texts; the same text twice counts once.
    """

    def __init__(self, passages: Iterable[str]) -> None:
        texts = set(passages)
        self._n_passages = len(texts)
        self._counts = Counter(word for text in texts for word in _words(text))
        self._known: dict[str, set[str]] = {}

    def _words_of(self, text: str) -> set[str]:
        if text not in self._known:
            self._known[text] = _words(text)
        return self._known[text]

    def shared(self, passage: str, query: str) -> Shared:
        """The words of both, at most MAX_SHARED, those in the fewest passages first, then the longer ones.

        Words in more than half of the passages tell nothing and are left out, unless there are few passages.
        """
        common = self._words_of(passage) & self._words_of(query)
        if self._n_passages >= FEW_PASSAGES:
            common = {word for word in common if self._counts[word] <= self._n_passages / 2}
        chosen = sorted(common, key=lambda word: (self._counts[word], -len(word), word))[:MAX_SHARED]
        return Shared(tuple(chosen), tuple(_pieces(passage, set(chosen))))


def _pieces(text: str, words: set[str]) -> list[tuple[str, bool]]:
    pieces: list[tuple[str, bool]] = []
    end = 0
    for match in WORD.finditer(text):
        if match.group().casefold() in words:
            if match.start() > end:
                pieces.append((text[end : match.start()], False))
            pieces.append((match.group(), True))
            end = match.end()
    if end < len(text):
        pieces.append((text[end:], False))
    return pieces
