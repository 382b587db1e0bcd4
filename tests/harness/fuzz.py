"""Reads hostile files through the tasks that write stores, and says what became of each."""

import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.readers import read_documents, read_queries
from dataworth.tasks.corpus.steps import prepare_corpus, prepare_queries
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.visible import visible
from tests.harness.hostile import Case, case

__all__ = ["KINDS", "fuzz", "outcome"]

# One after another, since only one model is kept loaded.
KINDS = ("corpus", "queries", "classes")

WHOLE = re.compile(
    r"holds no|no such file|cannot be read|unknown kind of file|not a readable (Parquet|\.gz) file|not a plain file|"
    r"expected a plain file|links to|"
    r"not valid UTF-8|has the two tokens|says no classes|its content is|which is not read|queries are read from JSONL"
)
PLACE = re.compile(r"(line|row) \d+|field '")


def outcome(given: Case, store: Path, model: ModelConfig) -> str:
    """Whether a file was read or refused.

    Raises:
        AssertionError: it was read wrongly, a sound one was refused, the refusal is no sentence that names the place,
            or something was left behind.
    """
    name = str(given.path)
    try:
        if given.kind == "queries":
            queries = QueriesConfig(file=name, max_new_tokens=2)
            ref = prepare_queries(str(store), model, queries)
            read = [(query.id, query.prompt, query.completion) for query in read_queries(queries)]
        else:
            corpus = CorpusConfig(files=[name], **given.options)
            ref = prepare_corpus(str(store), model, corpus)
            found = read_documents(corpus, labelled=given.kind == "classes")
            read = [(document.id, document.source, document.text) for document in found]
    except InputError as error:
        said = str(error)
        assert given.expected is None, (given.made, said)
        assert said == visible(said), (given.made, said)
        assert visible(name) in said, (given.made, said)
        assert len(said.replace(visible(name), "")) < 1000, (given.made, said)
        assert PLACE.search(said) or WHOLE.search(said), (given.made, said)
        left = [path for path in store.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
        assert left == [], (given.made, left)
        return "refused"
    assert given.expected is None or sorted(read) == sorted(given.expected), (given.made, read, given.expected)
    stored = list(CorpusStore.open(ref).documents())
    assert [row["document_id"] for row in stored] == [row[0] for row in read], given.made
    if given.kind == "queries":
        assert all(row["text"].startswith(one[1]) for row, one in zip(stored, read, strict=True)), given.made
    else:
        assert [(row["source"], row["text"]) for row in stored] == [row[1:] for row in read], given.made
    return "read"


def fuzz(seeds: Iterable[int], folder: Path, models: dict[str, ModelConfig]) -> dict[str, Counter[str]]:
    """How many files of each kind were read and refused.

    Args:
        seeds: one a file.
        folder: to work in.
        models: by kind.

    Raises:
        AssertionError: see `outcome`; and whatever else is raised, which is a hole.
    """
    counts = {kind: Counter[str]() for kind in KINDS}
    seeds = list(seeds)
    for number, kind in enumerate(KINDS):
        for seed in (seed for seed in seeds if (0, 0, 0, 1, 2)[seed % 5] == number):
            place = folder / str(seed)
            place.mkdir(parents=True)
            try:
                counts[kind][outcome(case(seed, place, kind), place / "store", models[kind])] += 1
            except Exception as error:
                error.add_note(f"seed {seed}, {kind}")
                raise
            shutil.rmtree(place)
    return counts
