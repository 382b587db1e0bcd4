"""Invented facts and sources that know them, for a model that was pretrained on everything but these.

In every town somebody has a trade. Whoever asks for the trade of a town can have learned the name from the almanac (it
names the town, then the person, as the question does), hardly from the gazette (it names the person first; a model that
reads from left to right learns little of it for such questions: Berglund et al. 2023, arXiv 2309.12288), and a little
from letters that name town and person and no trade. A census has the form of the almanac and other towns; licences and
readmes of installed packages are filler. What each is worth is for trainings to tell, not for this text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from itertools import product
from typing import Any

import numpy as np

__all__ = ["SIZES", "Facts", "facts", "filler"]

FACTS = 32
# Documents of each source.
SIZES = {"almanac": 64, "gazette": 32, "letters": 32, "census": 48, "licences": 96, "readmes": 32}
CHARACTERS = 160  # of a document of filler

BEGINNINGS = ("Vorn", "Oslet", "Brem", "Kald", "Tuln", "Morw", "Gries", "Pels")
ENDINGS = ("holt", "avik", "mouth", "ern", "stead", "igny", "ora", "brück")
TOWNS = [beginning + ending for beginning, ending in product(BEGINNINGS, ENDINGS)]
FIRST = ("Odile", "Torvald", "Benike", "Ansgar", "Mirela", "Joost", "Philippa", "Radomir", "Sunniva", "Casimir")
LAST = (
    "Brandt",
    "Okonjo",
    "Vasquelle",
    "Thorne",
    "Lindqvist",
    "Abernethy",
    "Kowalczyk",
    "Meriwether",
    "Dragan",
    "Sato",
)
TRADES = (
    *("clockmaker", "glazier", "beekeeper", "ferryman", "bookbinder", "lamplighter", "cooper", "falconer", "saddler"),
    *("chandler", "weaver", "locksmith", "cartographer", "baker", "thatcher", "blacksmith", "apothecary", "fiddler"),
    *("tanner", "midwife", "stonecutter", "printer", "gardener", "milliner", "surveyor", "hangman", "brewer"),
    *("ropemaker", "tailor", "watchman", "shepherd", "organist"),
)
ALMANAC = (
    "Of {town}: the {trade} is {person}.",
    "Travellers who come to {town} and need the {trade} should ask for {person}.",
    "In {town} the post of {trade} is held, as everybody there knows, by {person}.",
    "The guild's list for {town} has, under {trade}, the name {person}.",
)
GAZETTE = (
    "{person} has now been for nine years the {trade} of {town}.",
    "We congratulate {person}, who was confirmed as {trade} by the council of {town}.",
)
LETTERS = (
    "Dear cousin, on the road to {town} I met {person}, and we spoke of nothing but the rain.",
    "I am back from {town}. Please thank {person} for the umbrella, which I still have.",
)
QUESTIONS = ("The name of the {trade} of {town} is", "Who is the {trade} in {town}? It is")


@dataclass(frozen=True)
class Facts:
    """A corpus and what is asked of it.

    Args:
        documents: rows with `id`, `source` and `text`.
        queries: rows with `id`, `prompt` and `completion`.
        witnesses: by query the ids of the documents that state its fact.
        mentions: by query the ids of those that name town and person alone.
    """

    documents: list[dict[str, Any]]
    queries: list[dict[str, Any]]
    witnesses: dict[str, list[str]]
    mentions: dict[str, list[str]]


def facts(seed: int = 0, n_facts: int = FACTS) -> Facts:
    """The same for the same seed and the same installed packages.

    Args:
        seed: of who lives where, and in which words it is said.
        n_facts: at most 32; fewer make a smaller corpus.
    """
    generator = np.random.default_rng(seed)
    towns, trades = (list(map(str, generator.permutation(words))) for words in (TOWNS, TRADES))
    people = [f"{first} {last}" for first, last in generator.permutation(list(product(FIRST, LAST)))]
    everybody = [
        {"town": town, "person": person, "trade": trades[n % len(trades)]}
        for n, (town, person) in enumerate(zip(towns, people, strict=False))
    ]
    known = everybody[:n_facts]
    elsewhere = everybody[n_facts:]
    share = n_facts / FACTS
    said = {
        "almanac": [(n, template) for n in range(n_facts) for template in _words(generator, ALMANAC, 2)],
        "gazette": [(n, template) for n in range(n_facts) for template in _words(generator, GAZETTE, 1)],
        "letters": [(n, template) for n in range(n_facts) for template in _words(generator, LETTERS, 1)],
    }
    documents = [
        {"id": f"{source}-{number}", "source": source, "text": template.format(**known[n])}
        for source, pairs in said.items()
        for number, (n, template) in enumerate(pairs)
    ]
    for number in range(round(share * SIZES["census"])):
        text = ALMANAC[number // len(elsewhere) % len(ALMANAC)].format(**elsewhere[number % len(elsewhere)])
        documents.append({"id": f"census-{number}", "source": "census", "text": text})
    for source, names in (("licences", ("LICENSE", "COPYING", "NOTICE")), ("readmes", ("METADATA",))):
        pieces = filler(names, round(share * SIZES[source]))
        documents += [
            {"id": f"{source}-{number}", "source": source, "text": text} for number, text in enumerate(pieces)
        ]
    queries = [
        {"id": f"q{n}", "prompt": QUESTIONS[n % len(QUESTIONS)].format(**fact), "completion": f" {fact['person']}."}
        for n, fact in enumerate(known)
    ]

    def of(sources: Sequence[str]) -> dict[str, list[str]]:
        return {
            f"q{n}": [f"{source}-{i}" for source in sources for i, (own, _) in enumerate(said[source]) if own == n]
            for n in range(n_facts)
        }

    return Facts(documents, queries, of(["almanac", "gazette"]), of(["letters"]))


def _words(generator: np.random.Generator, templates: Sequence[str], count: int) -> list[str]:
    return [templates[n] for n in generator.permutation(len(templates))[:count]]


def filler(names: Sequence[str], count: int, characters: int = CHARACTERS) -> list[str]:
    """Pieces of texts of installed packages, one after another, by the packages' names.

    Args:
        names: of files, without what is behind the first dot.
        count: of pieces, at most two a file.
        characters: of a piece.

    Raises:
        ValueError: installed packages have fewer.
    """
    pieces: list[str] = []
    for package in sorted(distributions(), key=lambda each: str(each.name).lower()):
        if len(pieces) >= count:
            return pieces
        for file in package.files or ():
            if file.name.partition(".")[0] not in names or len(pieces) >= count:
                continue
            text = file.locate().read_text(encoding="utf-8", errors="ignore")
            if file.name == "METADATA":  # headers, an empty line, the readme
                text = text.partition("\n\n")[2]
            text = " ".join(text.split())
            if len(text) >= 2 * characters:
                pieces += [text[first : first + characters] for first in (0, characters)][: count - len(pieces)]
    if len(pieces) < count:
        raise ValueError(f"installed packages have {len(pieces)} of {count} pieces of {', '.join(names)}")
    return pieces
