"""The demo's language model with six sources, one of them a copy, and every coalition of them trained, resumably."""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.durable import replace_file
from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.corpus.config import QueriesConfig
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.corpus.stdlib import held_out, standard_library_documentation
from dataworth.tasks.corpus.steps import prepare_queries
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.training.small_model import SmallModel, train_language_model, train_tokenizer

__all__ = ["COPY", "MASKS", "PACKAGES", "SETTINGS", "SOURCES", "Language", "language", "worth_of_all"]

PACKAGES = ("email", "http", "logging", "unittest", "xml")
COPY = "email, copied"
SOURCES = sorted([*PACKAGES, COPY])
MASKS = all_coalitions(len(SOURCES))
DOCUMENTS = 80
QUERIES = 5
# Passages of other packages that a base is trained on.
GENERAL = 800
# The demo's, in size and in training.
FROM_NOTHING = SmallModel()
BASE = SmallModel()
FINE_TUNED = replace(SmallModel(), epochs=2, learning_rate=1e-3, weight_decay=0.0)
SETTINGS = {"from nothing": FROM_NOTHING, "fine-tuned": FINE_TUNED}


class Language:
    """Corpus, queries and settings of one seed, in a folder of its own.

    Args:
        folder: for everything.
        setting: one of SETTINGS.
        seed: of the passages, the model and its training.
    """

    def __init__(self, folder: Path, setting: str, seed: int) -> None:
        self.folder, self.setting, self.seed = folder / setting / str(seed), setting, seed
        self.settings = replace(SETTINGS[setting], seed=seed)
        self.corpus_file, self.queries_file = self.folder / "corpus.jsonl", self.folder / "queries.jsonl"
        passages = standard_library_documentation()
        split = held_out([row for row in passages if row["source"] in PACKAGES], QUERIES, seed)
        generator = np.random.default_rng(seed)
        self.documents: list[dict[str, str]] = []
        for package in PACKAGES:
            own = [row for row in split.corpus if row["source"] == package]
            self.documents += [own[n] for n in np.sort(generator.permutation(len(own))[:DOCUMENTS])]
        copies = [row for row in self.documents if row["source"] == PACKAGES[0]]
        self.documents += [{**row, "id": f"{row['id']} again", "source": COPY} for row in copies]
        others = [row["text"] for row in passages if row["source"] not in PACKAGES]
        self.general = [others[n] for n in np.sort(generator.permutation(len(others))[:GENERAL])]
        self.base = self.folder / "base" if setting == "fine-tuned" else None
        self.tokenizer = train_tokenizer(
            [row["text"] for row in self.documents] + (self.general if self.base else []), self.settings.vocabulary
        )
        self.queries = [row for row in split.queries if self._n_tokens(row) <= self.settings.positions]

    def _n_tokens(self, query: dict[str, str]) -> int:
        return sum(len(self.tokenizer(query[part])["input_ids"]) for part in ("prompt", "completion"))

    def write(self) -> None:
        """The corpus and the queries as files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, rows in ((self.corpus_file, self.documents), (self.queries_file, self.queries)):
            replace_file(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
        if self.base is not None and not (self.base / "model.safetensors").is_file():
            train_language_model(
                self.general, self.base, replace(BASE, seed=self.seed), lambda *_: None, self.tokenizer
            )

    def asked_packages(self) -> np.ndarray:
        """(n_queries,) package that each query was held out from."""
        return np.array([row["id"].split("/")[0] for row in self.queries])

    def train(self, mask: np.ndarray, folder: Path) -> None:
        """Train on a coalition, from the same start with the same settings."""
        members = {source for source, inside in zip(SOURCES, mask, strict=True) if inside}
        texts = [row["text"] for row in self.documents if row["source"] in members]
        shutil.rmtree(folder, ignore_errors=True)
        train_language_model(texts, folder, self.settings, lambda *_: None, self.tokenizer, self.base)

    def losses(self, model: Path) -> np.ndarray:
        """(n_queries,) nats under a checkpoint."""
        config = ModelConfig(name=str(model), device="cpu")
        queries = prepare_queries(str(self.folder / "store"), config, QueriesConfig(file=str(self.queries_file)))
        return query_losses(load(config), CorpusStore.open(queries))


def language(folder: Path, setting: str, seed: int) -> Language:
    """The problem of one setting and seed, its files written and the model of everybody trained."""
    problem = Language(folder, setting, seed)
    problem.write()
    if not (problem.folder / "model" / "model.safetensors").is_file():
        problem.train(np.ones(len(SOURCES), bool), problem.folder / "model")
    return problem


@lru_cache(maxsize=1)
def _problem(folder: str, setting: str, seed: int) -> Language:
    return Language(Path(folder), setting, seed)


def _trained_worth(folder: str, setting: str, seed: int, number: int) -> list[float]:
    """Minus the queries' losses after training on one coalition, kept in a file."""
    torch.set_num_threads(1)
    path = Path(folder) / setting / str(seed) / "worth" / f"{number}.json"
    if not path.is_file():
        problem = _problem(folder, setting, seed)
        model = problem.folder / f"trained-{number}"
        problem.train(MASKS[number], model)
        worth = (-problem.losses(model)).tolist()
        shutil.rmtree(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(worth).encode())
    found: list[float] = json.loads(path.read_text())
    return found


def worth_of_all(folder: Path, setting: str, seed: int, processes: int) -> np.ndarray:
    """(2^6, n_queries) worth of every coalition of MASKS; what was trained before is read."""
    language(folder, setting, seed)
    work: Any = partial(_trained_worth, str(folder), setting, seed)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return np.array(list(pool.map(work, range(len(MASKS)))))
