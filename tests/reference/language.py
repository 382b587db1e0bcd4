"""A small language model with six sources, one of them a copy, and every coalition of them trained, resumably."""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from storage.corpus import CorpusStore
from storage.manifest import replace_file
from tasks.coalitions.designs import all_coalitions
from tasks.coalitions.worth import query_losses
from tasks.corpus.config import QueriesConfig
from tasks.corpus.stdlib import held_out, standard_library_documentation
from tasks.corpus.task import prepare_queries
from tasks.model.config import ModelConfig
from tasks.model.loading import load
from tasks.model.training import SmallModel, train_language_model, train_tokenizer

__all__ = ["COPY", "MASKS", "SOURCES", "Language", "language", "worth_of_all"]

PACKAGES = ("email", "http", "logging", "unittest", "xml")
COPY = "email, copied"
SOURCES = sorted([*PACKAGES, COPY])
MASKS = all_coalitions(len(SOURCES))
DOCUMENTS = 80
QUERIES = 5


class Language:
    """Corpus, queries and settings of one seed, in a folder of its own.

    Args:
        folder: for everything.
        seed: of the passages, the model and its training.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.settings = SmallModel(
            vocabulary=1024, hidden=64, layers=2, heads=4, intermediate=176, positions=256, epochs=6, seed=seed
        )
        self.corpus_file, self.queries_file = folder / "corpus.jsonl", folder / "queries.jsonl"
        passages = [row for row in standard_library_documentation() if row["source"] in PACKAGES]
        split = held_out(passages, QUERIES, seed)
        generator = np.random.default_rng(seed)
        self.documents: list[dict[str, str]] = []
        for package in PACKAGES:
            own = [row for row in split.corpus if row["source"] == package]
            self.documents += [own[n] for n in np.sort(generator.permutation(len(own))[:DOCUMENTS])]
        copies = [row for row in self.documents if row["source"] == PACKAGES[0]]
        self.documents += [{**row, "id": f"{row['id']} again", "source": COPY} for row in copies]
        self.tokenizer = train_tokenizer([row["text"] for row in self.documents], self.settings.vocabulary)
        self.queries = [row for row in split.queries if self._n_tokens(row) <= self.settings.positions]

    def _n_tokens(self, query: dict[str, str]) -> int:
        return sum(len(self.tokenizer(query[part])["input_ids"]) for part in ("prompt", "completion"))

    def write(self) -> None:
        """The corpus and the queries as files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, rows in ((self.corpus_file, self.documents), (self.queries_file, self.queries)):
            replace_file(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())

    def train(self, mask: np.ndarray, folder: Path) -> None:
        """Train on a coalition, from the same start with the same settings."""
        members = {source for source, inside in zip(SOURCES, mask, strict=True) if inside}
        texts = [row["text"] for row in self.documents if row["source"] in members]
        shutil.rmtree(folder, ignore_errors=True)
        train_language_model(texts, folder, self.settings, lambda *_: None, self.tokenizer)

    def losses(self, model: Path) -> np.ndarray:
        """(n_queries,) nats under a checkpoint."""
        config = ModelConfig(name=str(model), device="cpu")
        queries = prepare_queries.fn(str(self.folder / "store"), config, QueriesConfig(file=str(self.queries_file)))
        return query_losses(load(config), CorpusStore.open(queries))


def language(folder: Path, seed: int) -> Language:
    """The problem of one seed, its files written and the model of everybody trained."""
    problem = Language(folder / str(seed), seed)
    problem.write()
    if not (problem.folder / "model" / "model.safetensors").is_file():
        problem.train(np.ones(len(SOURCES), bool), problem.folder / "model")
    return problem


def _trained_worth(folder: str, seed: int, number: int) -> list[float]:
    """Minus the queries' losses after training on one coalition, kept in a file."""
    torch.set_num_threads(1)
    path = Path(folder) / str(seed) / "worth" / f"{number}.json"
    if not path.is_file():
        problem = Language(Path(folder) / str(seed), seed)
        model = problem.folder / f"trained-{number}"
        problem.train(MASKS[number], model)
        worth = (-problem.losses(model)).tolist()
        shutil.rmtree(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(worth).encode())
    found: list[float] = json.loads(path.read_text())
    return found


def worth_of_all(folder: Path, seed: int, processes: int) -> np.ndarray:
    """(2^6, n_queries) worth of every coalition of MASKS; what was trained before is read."""
    language(folder, seed)
    work: Any = partial(_trained_worth, str(folder), seed)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return np.array(list(pool.map(work, range(len(MASKS)))))
