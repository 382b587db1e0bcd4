"""A real language model tuned on invented facts, whole or by LoRA, and on coalitions of the sources, resumably.

What the questions lose after each training is kept in one file, which is committed: a training is never done twice.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.durable import replace_file
from dataworth.storage.ref import StoreRef
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.corpus.steps import prepare_corpus, prepare_queries
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import LoadedModel, load
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.retraining import as_it_was, train
from tests.reference.facts import Facts, facts

__all__ = ["FACTS", "KEPT", "MASKS", "SETTINGS", "SOURCES", "TunedFacts", "kept_losses", "named", "shapley_estimate"]

KEPT = Path(__file__).parents[1] / "bench" / "trainings" / "facts.json"
FACTS, WINDOW = 16, 128
SOURCES = ("almanac", "census", "gazette", "letters", "licences", "readmes")
SETTINGS = {
    "whole": TrainingConfig(epochs=2, batch_tokens=256, learning_rate=1e-4),
    "LoRA": TrainingConfig(epochs=2, batch_tokens=256, learning_rate=2e-3),
}
LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def _design() -> np.ndarray:
    """(30, 6) nobody, everybody, each left out, each alone, and eight pairs in which everybody is equally often."""
    n, eye = len(SOURCES), np.eye(len(SOURCES), dtype=bool)
    two = [(0, 1), (2, 3), (4, 5), (0, 2), (3, 5), (1, 4)]
    three = [(0, 3, 4), (1, 3, 5)]
    halves = np.array([[player in half for player in range(n)] for half in (*two, *three)])
    return np.concatenate([np.zeros((1, n), bool), np.ones((1, n), bool), ~eye, eye, halves, ~halves])


MASKS = _design()


class TunedFacts:
    """Corpus, questions and trainings of one setting and seed.

    Args:
        folder: for everything but the measured losses.
        checkpoint: of the pretrained model.
        setting: one of SETTINGS.
        seed: of the order, and of what LoRA begins with.
    """

    def __init__(self, folder: Path, checkpoint: Path, setting: str, seed: int) -> None:
        self.setting, self.seed = setting, seed
        self.base = ModelConfig(name=str(checkpoint), device="cpu")
        self.facts: Facts = facts(0, FACTS)
        self.corpus_file, self.queries_file = folder / "corpus.jsonl", folder / "queries.jsonl"
        self.model_folder = folder / f"{setting}, seed {seed}"
        self.store = str(folder / "store")
        folder.mkdir(parents=True, exist_ok=True)
        for path, rows in ((self.corpus_file, self.facts.documents), (self.queries_file, self.facts.queries)):
            replace_file(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())

    @property
    def training(self) -> TrainingConfig:
        """How."""
        return SETTINGS[self.setting].model_copy(update={"seed": self.seed})

    @cached_property
    def corpus(self) -> CorpusStore:
        """The documents in windows."""
        config = CorpusConfig(files=[str(self.corpus_file)], max_length=WINDOW)
        return CorpusStore.open(prepare_corpus(self.store, self.base, config))

    @cached_property
    def queries(self) -> StoreRef:
        """The questions."""
        return prepare_queries(self.store, self.base, QueriesConfig(file=str(self.queries_file)))

    @contextmanager
    def trained(self, mask: np.ndarray) -> Iterator[LoadedModel]:
        """The pretrained model tuned on a coalition; as it was when the block ends."""
        loaded = load(self.base)
        members = [name for name, inside in zip(SOURCES, mask, strict=True) if inside]
        of_windows = np.array(self.corpus.column("source").to_pylist())[self.corpus.windows["document"]]
        chosen = np.flatnonzero(np.isin(of_windows, members))
        if self.setting == "whole":
            with as_it_was(loaded):
                train(loaded, self.corpus, chosen, self.training)
                yield loaded
            return
        torch.manual_seed(self.seed)
        adapted = get_peft_model(loaded.model, LORA)
        try:
            train(replace(loaded, model=adapted), self.corpus, chosen, self.training)
            yield loaded
        finally:
            adapted.unload()  # type: ignore[operator]  # of peft

    def losses(self, mask: np.ndarray) -> np.ndarray:
        """(q,) nats after training on a coalition, known or trained now; everybody's model is saved."""
        kept = _kept()
        of_setting = kept["losses"].setdefault(f"{self.setting}, seed {self.seed}", {})
        if named(mask) not in of_setting:
            with self.trained(mask) as loaded:
                measured = query_losses(loaded, CorpusStore.open(self.queries))
                if mask.all():
                    self._save(loaded)
            of_setting[named(mask)] = [round(float(nats), 5) for nats in measured]
            replace_file(KEPT, (json.dumps(kept, indent=1) + "\n").encode())
        return np.array(of_setting[named(mask)])

    def checkpoint(self) -> Path:
        """Everybody's model, an ordinary checkpoint; adapters are added to the weights."""
        if not (self.model_folder / "config.json").is_file():
            with self.trained(np.ones(len(SOURCES), bool)) as loaded:
                self._save(loaded)
        return self.model_folder

    def _save(self, loaded: LoadedModel) -> None:
        model: Any = loaded.model
        adapters = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        for adapter in adapters:
            adapter.merge()
        # As the plain model spells them, without what the adapters add.
        state = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
        state = {name: tensor for name, tensor in state.items() if ".lora_" not in name}
        partial = self.model_folder.with_name(f"{self.model_folder.name}.partial")
        model.save_pretrained(partial, state_dict=state)
        loaded.tokenizer.save_pretrained(partial)
        for adapter in adapters:
            adapter.unmerge()
        partial.rename(self.model_folder)


def named(mask: np.ndarray) -> str:
    """A coalition as digits, in the order of SOURCES."""
    return "".join(str(int(inside)) for inside in mask)


def _identity() -> str:
    """Of what is trained on, and how; other packages installed, other filler."""
    made = facts(0, FACTS)
    settings = {name: each.model_dump() for name, each in SETTINGS.items()}
    parts = [made.documents, made.queries, settings, str(LORA.to_dict()["r"])]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _kept() -> dict:  # type: ignore[type-arg]
    if KEPT.is_file():
        kept: dict = json.loads(KEPT.read_text())  # type: ignore[type-arg]
        if kept["identity"] == _identity():
            return kept
    return {"identity": _identity(), "sources": list(SOURCES), "losses": {}}


def kept_losses() -> Iterator[tuple[str, int, dict[str, np.ndarray]]]:
    """Setting, seed, and the losses by coalition, as they were measured once."""
    for name, losses in json.loads(KEPT.read_text())["losses"].items():
        setting, _, seed = name.partition(", seed ")
        yield setting, int(seed), {mask: np.array(each) for mask, each in losses.items()}


def shapley_estimate(utilities: dict[str, np.ndarray]) -> np.ndarray:
    """(s, q) values of the additive game nearest to what is known, by size as many coalitions as there are.

    phi = argmin sum over C of kernel(|C|) N(|C|) / n(|C|) (v(C) - v(none) - sum of phi_i in C)², phi adding up to
    v(all) - v(none): Shapley's value where every coalition is known.

    Args:
        utilities: (q,) by coalition, everybody and nobody among them.
    """
    masks = np.array([[digit == "1" for digit in name] for name in utilities])
    worth = np.array(list(utilities.values()))
    n, sizes = masks.shape[1], masks.sum(axis=1)
    inner = (sizes > 0) & (sizes < n)
    total = worth[sizes == n][0] - worth[sizes == 0][0]
    there = np.bincount(sizes, minlength=n + 1)
    roots = np.sqrt(1 / (sizes[inner] * (n - sizes[inner]) * there[sizes[inner]]))[:, None]
    rows = roots * (masks[inner] - sizes[inner, None] / n)
    targets = roots * (worth[inner] - worth[sizes == 0][0] - sizes[inner, None] / n * total)
    slopes: np.ndarray = np.linalg.pinv(rows, rcond=1e-10) @ targets
    return slopes + total / n
