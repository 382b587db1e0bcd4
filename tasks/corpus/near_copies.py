"""Near copies among documents, and who they belong to together.

Two texts are near copies where most of their sequences of five words are the same (Jaccard similarity, estimated by
MinHash and looked up by locality-sensitive hashing: Broder 1997; Indyk & Motwani 1998). Copies of copies are copies.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.corpus.config import COPY_OF, OWNERS
from dataworth.tasks.corpus.documents import Document
from dataworth.tasks.visible import short

__all__ = ["NearCopies", "near_copies"]

# The error of an estimated similarity of 0.8 is 0.025 (standard deviation).
PERMUTATIONS = 256
WORDS = 5
# Where there are fewer spaces than that, words are not separated by them: sequences of letters then.
LETTERS_A_WORD, LETTERS = 25, 9
JOINED = " + "
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class NearCopies:
    """What is known of documents that have near copies.

    Args:
        first: id of such a document → id of the first of its copies, itself for that one.
        owners: id of one that several sources have → their names.
        sources: of all documents.
    """

    first: Mapping[str, str]
    owners: Mapping[str, str]
    sources: frozenset[str] = field(default=frozenset())

    def __post_init__(self) -> None:
        joined = sorted(name for name in self.sources if JOINED in name) if self.owners else []
        if joined:
            raise InputError(
                f"{setting('corpus.near_copies')}: the source {short(joined[0])} holds {JOINED!r}, which joins those "
                "who have the same text: write it otherwise"
            )

    def marked(self, document: Document) -> Document:
        """A document with the two further fields."""
        first = self.first.get(document.id, document.id)
        own = {
            OWNERS: self.owners.get(document.id, document.source),
            COPY_OF: "" if first == document.id else first,
        }
        return replace(document, fields={**document.fields, **own})


def near_copies(documents: Iterable[Document], similarity: float) -> NearCopies:
    """Find them, in one pass; memory is some 13 kilobytes a document. Texts of different classes are no copies.

    Args:
        documents: in the order in which the first of some copies is the first.
        similarity: from which on two are copies.

    Raises:
        InputError: a source has the name that copies of several would get.
    """
    from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]

    # A little below, so that few are overlooked; of what is found the similarity decides.
    index = MinHashLSH(threshold=min(max(similarity - 0.1, 0.2), 0.9), num_perm=PERMUTATIONS)
    seen: list[tuple[str, str]] = []
    signatures: list[MinHash | None] = []
    parents: list[int] = []
    labels: list[str | None] = []
    exact: dict[bytes, int] = {}

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    def join(one: int, other: int) -> None:
        low, high = sorted((root(one), root(other)))
        parents[high] = low

    for number, document in enumerate(documents):
        seen.append((document.id, document.source))
        parents.append(number)
        words = _words(_text(document))
        digest = hashlib.sha256(" ".join([document.label or "", *words]).encode()).digest()
        labels.append(document.label)
        same = exact.setdefault(digest, number)
        if same != number:
            signatures.append(None)
            join(same, number)
            continue
        signature = MinHash(num_perm=PERMUTATIONS)
        signature.update_batch(list(_sequences(words)))
        for other in index.query(signature):
            if labels[other] == document.label and signature.jaccard(signatures[other]) >= similarity:
                join(other, number)
        index.insert(number, signature)
        signatures.append(signature)
    return _told(seen, [root(number) for number in range(len(seen))])


def _told(seen: list[tuple[str, str]], roots: list[int]) -> NearCopies:
    members: dict[int, list[int]] = {}
    for number, own in enumerate(roots):
        members.setdefault(own, []).append(number)
    first, owners = {}, {}
    for own, numbers in members.items():
        if len(numbers) == 1:
            continue
        names = sorted({seen[number][1] for number in numbers})
        for number in numbers:
            first[seen[number][0]] = seen[own][0]
            if len(names) > 1:
                owners[seen[number][0]] = JOINED.join(names)
    return NearCopies(first, owners, frozenset(source for _, source in seen))


def _text(document: Document) -> str:
    if document.chat is None:
        return document.text
    turns = [turn for turn in document.chat.messages if turn["role"] != "system"] or document.chat.messages
    parts = [{name: value for name, value in turn.items() if name != "role"} for turn in turns]
    return " ".join(json.dumps(list(part.values()), ensure_ascii=False) for part in parts)


def _words(text: str) -> list[str]:
    lowered = text.lower()
    words = _WORD.findall(lowered)
    if not words or len(lowered) > LETTERS_A_WORD * (1 + len(lowered.split())):
        return list(re.sub(r"\s+", "", lowered))
    return words


def _sequences(words: list[str]) -> Iterator[bytes]:
    length = WORDS if any(len(word) > 1 for word in words) else LETTERS
    for start in range(max(1, len(words) - length + 1)):
        yield " ".join(words[start : start + length]).encode()
