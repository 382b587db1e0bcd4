"""Eight sources whose sizes do not follow their worth: what a method that counts tokens must get wrong.

    long           80 pieces of the documentation of one package, whichever
    short          20 of a second one, which say much of what is asked
    copy           the same 20
    near copy      the same 20, one or two words in a hundred of them exchanged for others
    tiny           5 of a third one, which say much of what is asked, and nobody else does
    shuffled       40 of a fourth one, the words of each in random order
    elsewhere      40 pieces of licences or readmes
    contradicting  20 of the first two, in which opposites changed places

Queries are pieces of the four packages' documentation that are nobody's document and share phrases with documents: what
a small model can learn in seconds.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.corpus.stdlib import standard_library_documentation
from tests.reference.facts import filler

__all__ = ["MASKS", "OPPOSITES", "RECIPES", "SIZES", "SOURCES", "Recipe", "Unequal", "changed_words", "unequal"]

# Documents of each source.
SIZES = {
    "long": 80, "short": 20, "copy": 20, "near copy": 20,
    "tiny": 5, "shuffled": 40, "elsewhere": 40, "contradicting": 20,
}  # fmt: skip
SOURCES = tuple(SIZES)
MASKS = all_coalitions(len(SOURCES))
QUERIES = 6  # of each package
CHARACTERS = (48, 88)  # of a document
LEAST_WORDS = 6
FILLER = 320  # characters of what pieces of elsewhere are cut from
ALIKE = 0.4  # phrases that two queries may have in common, at most
CHANGED = 0.015  # words of a near copy
OPPOSITES = (
    *(("read", "write"), ("client", "server"), ("true", "false"), ("open", "close"), ("first", "last")),
    *(("before", "after"), ("start", "stop"), ("input", "output"), ("with", "without"), ("and", "or")),
    *(("get", "set"), ("add", "remove"), ("all", "none"), ("if", "unless"), ("from", "to"), ("not", "always")),
    *(("new", "old"), ("return", "raise"), ("more", "less"), ("up", "down"), ("same", "other"), ("next", "previous")),
)


@dataclass(frozen=True)
class Recipe:
    """What a corpus is made of.

    Args:
        long, short, tiny, shuffled: packages of the standard library.
        elsewhere: files of installed packages (see `filler`).
        seed: of the choice of pieces, of what is changed and of how words are shuffled.
    """

    long: str
    short: str
    tiny: str
    shuffled: str
    elsewhere: tuple[str, ...]
    seed: int

    @property
    def packages(self) -> tuple[str, ...]:
        """The four."""
        return self.long, self.short, self.tiny, self.shuffled


RECIPES = {
    "unequal": Recipe("asyncio", "logging", "http", "xml", ("LICENSE", "COPYING", "NOTICE"), 0),
    "held-out": Recipe("email", "unittest", "urllib", "importlib", ("METADATA",), 1),
}


@dataclass(frozen=True)
class Unequal:
    """A corpus, what is asked of it, and text for a base that knows none of it.

    Args:
        documents: rows with `id`, `source` and `text`, by source in the order of SOURCES.
        queries: rows with `id`, `source` (of SOURCES, whose package it is from), `prompt` and `completion`.
        general: texts of other packages, the same for every recipe.
    """

    documents: list[dict[str, str]]
    queries: list[dict[str, str]]
    general: list[str]

    def of(self, source: str) -> list[dict[str, str]]:
        """Its documents."""
        return [row for row in self.documents if row["source"] == source]


def unequal(recipe: Recipe) -> Unequal:
    """The same for the same recipe, standard library and installed packages."""
    generator = np.random.default_rng(recipe.seed)
    passages = standard_library_documentation()
    asked: list[dict[str, str]] = []
    own: dict[str, list[str]] = {}
    for source, package in zip(("long", "short", "tiny", "shuffled"), recipe.packages, strict=True):
        pieces = _distinct(row["text"] for row in passages if row["source"] == package)
        shuffled = [pieces[place] for place in generator.permutation(len(pieces))]
        questions, own[source] = _parted(shuffled, SIZES[source], pertinent=source in ("short", "tiny"))
        asked += [_query(f"{package}-{number}", source, text) for number, text in enumerate(questions)]
    own["copy"] = own["short"]
    own["near copy"] = _nearly(own["short"], _words(own["long"]), generator)
    own["shuffled"] = [" ".join(generator.permutation(text.split())) for text in own["shuffled"]]
    texts = _distinct(filler(recipe.elsewhere, SIZES["elsewhere"], FILLER))
    own["elsewhere"] = [texts[place] for place in generator.permutation(len(texts))[: SIZES["elsewhere"]]]
    own["contradicting"] = _contradicting(own["short"], own["long"])
    documents = [
        {"id": f"{source}-{number}", "source": source, "text": text}
        for source in SOURCES
        for number, text in enumerate(own[source])
    ]
    used = {package for each in RECIPES.values() for package in each.packages}
    general = [piece for row in passages if row["source"] not in used for piece in _pieces(row["text"])]
    return Unequal(documents, asked, general)


def _pieces(text: str) -> list[str]:
    """Of 48 to 88 characters and at least six words, cut between words; what is shorter is left out."""
    least, most = CHARACTERS
    pieces, words = [""], text.split()
    for word in words:
        longer = f"{pieces[-1]} {word}".strip()
        if len(longer) <= most:
            pieces[-1] = longer
        else:
            pieces.append(word[:most])
    return [piece for piece in pieces if len(piece) >= least and _n_words(piece) >= LEAST_WORDS]


def _n_words(text: str) -> int:
    return sum(word.strip(".,:;()'").isalpha() for word in text.split())


def _distinct(passages: Iterable[str]) -> list[str]:
    """Pieces of passages, those apart that differ in more than case and signs."""
    found: dict[str, str] = {}
    for passage in passages:
        for piece in _pieces(passage):
            found.setdefault(re.sub(r"\W+", " ", piece.lower()).strip(), piece)
    return list(found.values())


def _parted(pieces: Sequence[str], count: int, pertinent: bool) -> tuple[list[str], list[str]]:
    """Queries and documents.

    Args:
        pieces: distinct, in random order.
        count: of the documents.
        pertinent: the documents are those that share most with the queries; else the first.
    """
    phrases = [_phrases(piece) for piece in pieces]
    of_documents = range(len(pieces)) if pertinent else range(count)
    among = Counter(phrase for place in of_documents for phrase in phrases[place])
    own = 1 if pertinent else 0  # a piece among the documents knows its own phrases
    places = range(0 if pertinent else count, len(pieces))
    known = {place: np.mean([among[phrase] > own for phrase in phrases[place]]) for place in places}
    queries: list[int] = []
    for place in sorted(places, key=lambda place: -known[place]):
        if all(len(phrases[place] & phrases[other]) <= ALIKE * len(phrases[place]) for other in queries):
            queries.append(place)
        if len(queries) == QUERIES:
            break
    asked = set().union(*(phrases[place] for place in queries))
    rest = [place for place in range(len(pieces)) if place not in queries]
    if pertinent:
        rest.sort(key=lambda place: -len(phrases[place] & asked))
    return [pieces[place] for place in queries], [pieces[place] for place in rest[:count]]


def _phrases(text: str) -> set[tuple[str, str]]:
    words = text.lower().split()
    return set(pairwise(words))


def _query(name: str, source: str, text: str) -> dict[str, str]:
    cut = text.index(" ", len(text) // 3)
    return {"id": name, "source": source, "prompt": text[:cut], "completion": text[cut:]}


def _words(texts: Sequence[str]) -> list[str]:
    return [word for text in texts for word in text.split()]


def _nearly(texts: Sequence[str], others: Sequence[str], generator: np.random.Generator) -> list[str]:
    """The texts, with so many words exchanged for others."""
    lines = [text.split() for text in texts]
    places = [(row, column) for row, line in enumerate(lines) for column in range(len(line))]
    for place in generator.permutation(len(places))[: round(CHANGED * len(places))]:
        row, column = places[place]
        lines[row][column] = next(
            word for word in others[int(generator.integers(len(others) - 100)) :] if word != lines[row][column]
        )
    return [" ".join(line) for line in lines]


def changed_words(texts: Sequence[str], others: Sequence[str]) -> float:
    """Part of the words in which texts of as many words differ."""
    pairs = list(zip(_words(texts), _words(others), strict=True))
    return sum(one != two for one, two in pairs) / len(pairs)


def _contradicting(*sources: Sequence[str]) -> list[str]:
    """Of each source those texts in which most opposites can change places, as many of each."""
    found: list[str] = []
    for texts in sources:
        turned = [_turned(text) for text in texts]
        most = sorted(range(len(texts)), key=lambda place: -turned[place][1])[: SIZES["contradicting"] // len(sources)]
        found += [turned[place][0] for place in sorted(most)]
    return found


def _turned(text: str) -> tuple[str, int]:
    """A text whose opposites changed places, and how many did."""
    other = {one: two for pair in OPPOSITES for one, two in (pair, pair[::-1])}

    def turned(match: re.Match[str]) -> str:
        word = match[0]
        return other[word.lower()].capitalize() if word[0].isupper() else other[word]

    return re.subn(rf"\b({'|'.join(other)})\b", turned, text, flags=re.IGNORECASE)
