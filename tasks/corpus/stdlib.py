"""A corpus that is always at hand: the documentation strings in Python's own standard library.

They are read with `ast` from the installed source files; nothing is imported.
"""

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["HeldOut", "fewer", "held_out", "standard_library_documentation"]

LEAST_CHARACTERS = 60
LEAST_DOCUMENTS = 10
QUERY_CHARACTERS = (150, 800)
NOT_DOCUMENTATION = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "__phello__"}

Passage = dict[str, str]


def standard_library_documentation(root: Path | None = None) -> list[Passage]:
    """Every distinct documentation string of at least 60 characters, with `id`, `source` (its package) and `text`.

    Packages with fewer than 10 are left out, so are tests.

    Args:
        root: folder of the library; default: that of the running Python.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    by_package: dict[str, list[Passage]] = {}
    for path in sorted(root.glob("*/**/*.py")):
        relative = path.relative_to(root)
        if NOT_DOCUMENTATION.isdisjoint(relative.parts):
            for name, text in _docstrings(path):
                if len(text) >= LEAST_CHARACTERS and text not in seen:
                    seen.add(text)
                    passage = {"id": f"{relative.as_posix()}:{name}", "source": relative.parts[0], "text": text}
                    by_package.setdefault(relative.parts[0], []).append(passage)
    return [passage for passages in by_package.values() if len(passages) >= LEAST_DOCUMENTS for passage in passages]


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and deliberately broken files are no source
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and text.isprintable() | ("\n" in text):
                name = "module" if isinstance(node, ast.Module) else f"{node.name}:{node.lineno}"
                yield name, text


def fewer(passages: list[Passage], count: int) -> list[Passage]:
    """Some of the passages, in their order: the first of every source, then the second, until there are so many."""
    number_in_source: dict[str, int] = {}
    numbers = []
    for passage in passages:
        numbers.append(number_in_source.setdefault(passage["source"], 0))
        number_in_source[passage["source"]] += 1
    kept = sorted(np.argsort(numbers, kind="stable")[:count].tolist())
    return [passages[place] for place in kept]


@dataclass(frozen=True)
class HeldOut:
    """A corpus and the passages kept out of it.

    Args:
        corpus: passages to train on and to value.
        queries: `id`, `prompt` (about a third of a held-out passage) and `completion` (the rest).
        sources: query id → the source the passage came from.
    """

    corpus: list[Passage]
    queries: list[Passage]
    sources: dict[str, str]


def held_out(passages: list[Passage], per_source: int, seed: int) -> HeldOut:
    """Keep `per_source` passages of middling length of every source out as queries.

    Args:
        passages: of several sources.
        per_source: at most a tenth of a source's passages, at least one.
        seed: of the choice.
    """
    generator = np.random.default_rng(seed)
    chosen: set[str] = set()
    for source in sorted({passage["source"] for passage in passages}):
        own = [passage for passage in passages if passage["source"] == source]
        low, high = QUERY_CHARACTERS
        fit = [passage["id"] for passage in own if low <= len(passage["text"]) <= high]
        count = min(per_source, max(1, len(own) // 10), len(fit))
        chosen.update(str(name) for name in generator.permutation(fit)[:count])
    queries = []
    for passage in passages:
        if passage["id"] in chosen:
            cut = passage["text"].index(" ", len(passage["text"]) // 3)
            queries.append({"id": passage["id"], "prompt": passage["text"][:cut], "completion": passage["text"][cut:]})
    return HeldOut(
        corpus=[passage for passage in passages if passage["id"] not in chosen],
        queries=queries,
        sources={passage["id"]: passage["source"] for passage in passages if passage["id"] in chosen},
    )
