"""A source, a near copy of two thirds of it, and others; each left out and the model trained again, resumably.

The near copy lacks 1.5 % of the words and has typographic quotes where its original has straight ones. The original is
the package whose documentation quotes most, of which those texts are taken that hold a quote. Held-out passages of it
are asked in its own style, in the copy's, and without quotes; the loss on the tokens that are quotes and the loss on
all others are two rows, which add up.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataworth.storage.durable import replace_file
from dataworth.tasks.corpus.batches import IGNORED, padded_batch
from dataworth.tasks.corpus.documents import Document
from dataworth.tasks.corpus.measured_losses import measured_losses
from dataworth.tasks.corpus.stdlib import held_out, standard_library_documentation
from dataworth.tasks.corpus.windows import tokenised_document
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.training.small_model import SmallModel, train_language_model, train_tokenizer

__all__ = [
    "COPY",
    "ORIGINAL",
    "SETTINGS",
    "TRAININGS",
    "TWINS",
    "VARIANTS",
    "Asked",
    "NearCopies",
    "in_copys_style",
    "near_copy",
    "without_quotes",
]

ORIGINAL, OTHERS = "distutils", ("asyncio", "email", "idlelib", "logging", "tkinter")
COPY = f"{ORIGINAL}, nearly copied"
DOCUMENTS, SHARED, OTHER_DOCUMENTS, GENERAL = 150, 100, 80, 800
QUERIES, OTHER_QUERIES = 24, 4
DROPPED = 0.015
QUOTES = "'\"`‘’“”"
# The demo's, of smaller size.
BASE = SmallModel(hidden=96, layers=3, intermediate=256)
FROM_NOTHING = replace(BASE, epochs=4)
FINE_TUNED = replace(BASE, epochs=2, learning_rate=1e-3, weight_decay=0.0)
SETTINGS = {"fine-tuned": FINE_TUNED, "from nothing": FROM_NOTHING}
# Parts of the corpus that a training goes without.
TWINS, ALONE = f"{ORIGINAL}, of which there is a copy", f"{ORIGINAL}, of which there is none"
# Training → how often each part of the corpus is in it, where that is not once.
TRAININGS: dict[str, dict[str, int]] = {
    "everybody": {},
    "without the original": {TWINS: 0, ALONE: 0},
    "without the original's shared texts": {TWINS: 0},
    "without the near copy": {COPY: 0},
    "without the shared texts of both": {TWINS: 0, COPY: 0},
    "without both": {TWINS: 0, ALONE: 0, COPY: 0},
    "with the original's shared texts twice": {TWINS: 2},
    "with the near copy twice": {COPY: 2},
}
VARIANTS = ("exact copy", "words dropped", "quotes changed")


def near_copy(text: str, generator: np.random.Generator, dropped: float = DROPPED) -> str:
    """The text without some of its words, each drawn by itself, with the white space after it."""
    words = re.findall(r"\s*\S+\s*", text)
    kept = generator.random(len(words)) >= dropped
    return "".join(word for word, keep in zip(words, kept, strict=True) if keep)


def in_copys_style(text: str) -> str:
    """Typographic quotes for straight ones."""
    opened = False

    def turned(match: re.Match[str]) -> str:
        nonlocal opened
        if match[0] != '"':
            return {"'": "’", "`": "‘"}[match[0]]
        opened = not opened
        return "“" if opened else "”"

    return re.sub("['\"`]", turned, text)


def without_quotes(text: str) -> str:
    """The text without any quotes."""
    return re.sub(f"[{QUOTES}]", "", text)


@dataclass(frozen=True)
class Asked:
    """Rows of tokens with a loss on some of them, each a document of its own.

    Args:
        tokens: ids of each.
        targets: of each, where its loss is.
    """

    tokens: tuple[np.ndarray, ...]
    targets: tuple[np.ndarray, ...]

    @property
    def n_examples(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.tokens], np.int64)

    @property
    def documents(self) -> np.ndarray:
        return np.arange(len(self.tokens))

    @property
    def n_documents(self) -> int:
        return len(self.tokens)

    def batch(self, numbers: np.ndarray, device: torch.device) -> tuple[torch.Tensor, ...]:
        ids, mask, labels = padded_batch([self.tokens[n] for n in numbers], np.zeros(len(numbers), np.int64), 0)
        for row, number in enumerate(numbers):
            labels[row, : len(self.targets[number])][~self.targets[number]] = IGNORED
        ids, mask, labels = (torch.from_numpy(array).to(device) for array in (ids, mask, labels))
        return ids, mask, labels

    def uniforms(self, numbers: np.ndarray, labels: torch.Tensor, draws: int, seed: int) -> np.ndarray:
        raise NotImplementedError("no curvature is fitted on queries")


class NearCopies:
    """Corpus, queries and trainings in a folder.

    Args:
        folder: for everything.
        setting: one of SETTINGS.
    """

    def __init__(self, folder: Path, setting: str) -> None:
        self.folder, self.settings = folder / setting, SETTINGS[setting]
        passages, generator = standard_library_documentation(), np.random.default_rng(0)
        mine = [row for row in passages if row["source"] == ORIGINAL]
        split = held_out(mine, QUERIES, 0)
        theirs = held_out([row for row in passages if row["source"] in OTHERS], OTHER_QUERIES, 0)
        quoting = [row for row in split.corpus if in_copys_style(row["text"]) != row["text"]]
        chosen = [quoting[n] for n in generator.permutation(len(quoting))[:DOCUMENTS]]
        self.originals = [{**row, "part": TWINS if n < SHARED else ALONE} for n, row in enumerate(chosen)]
        self.copies = []
        for row in self.originals[:SHARED]:
            text = in_copys_style(near_copy(row["text"], generator))
            self.copies.append({"id": f"{row['id']} again", "source": COPY, "text": text, "part": COPY})
        self.others = []
        for package in OTHERS:
            own = [row for row in theirs.corpus if row["source"] == package]
            rows = [own[n] for n in generator.permutation(len(own))[:OTHER_DOCUMENTS]]
            self.others += [{**row, "part": package} for row in rows]
        self.documents = [*self.originals, *self.copies, *self.others]
        rest = [row["text"] for row in passages if row["source"] not in (ORIGINAL, *OTHERS)]
        self.general = [rest[n] for n in generator.permutation(len(rest))[:GENERAL]]
        self.asked, self.asked_of_others = split.queries, theirs.queries

    @cached_property
    def tokenizer(self) -> Any:
        """Of all texts, so that every training has the same."""
        return train_tokenizer([row["text"] for row in self.documents] + self.general, self.settings.vocabulary)

    def variants(self) -> list[dict[str, str]]:
        """Copies of the shared texts that differ in one way alone, which no model is trained on."""
        made, generator = [], np.random.default_rng(1)
        for row in self.originals[:SHARED]:
            texts = (row["text"], near_copy(row["text"], generator), in_copys_style(row["text"]))
            for name, text in zip(VARIANTS, texts, strict=True):
                made.append({"id": f"{row['id']} {name}", "source": name, "text": text})
        return made

    def write(self) -> None:
        """The corpus as a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({key: row[key] for key in ("id", "source", "text")}) for row in self.documents)
        replace_file(self.folder / "corpus.jsonl", "".join(f"{line}\n" for line in lines).encode())

    def windows(self, max_length: int) -> tuple[Asked, np.ndarray, np.ndarray]:
        """Every window of the corpus and of the variants, cut as the project cuts them, with the loss on part of it.

        Returns:
            Rows, one a window and part; the document of each; and whether its loss is on quotes.
        """
        tokens, targets, documents, on_quotes = [], [], [], []
        for number, row in enumerate([*self.documents, *self.variants()]):
            document = Document(row["id"], row["source"], row["text"], "")
            cut = tokenised_document(self.tokenizer, document, max_length)
            of_quotes = self._targets("", row["text"], len(cut.tokens))[2]
            for start, length, *_ in cut.windows:
                for chosen in (of_quotes, ~of_quotes):
                    tokens.append(cut.tokens[start : start + length])
                    targets.append(chosen[start : start + length])
                    documents.append(number)
                    on_quotes.append(chosen is of_quotes)
        return Asked(tuple(tokens), tuple(targets)), np.array(documents), np.array(on_quotes)

    def queries(self) -> tuple[Asked, list[tuple[str, str]]]:
        """Rows of the queries, and what each is: the style, and whether its loss is on quotes or on the rest."""
        tokens, targets, kinds = [], [], []
        styles = {"original's style": str, "copy's style": in_copys_style, "no quotes": without_quotes}
        sets = [(name, style, self.asked) for name, style in styles.items()]
        for name, style, rows in [*sets, ("other sources", str, self.asked_of_others)]:
            for row in rows:
                prompt, completion = style(row["prompt"]), style(row["completion"])
                ids, of_completion, of_quotes = self._targets(prompt, prompt + completion, self.settings.positions)
                for part, chosen in (("quotes", of_quotes), ("rest", ~of_quotes)):
                    tokens.append(ids)
                    targets.append(of_completion & chosen)
                    kinds.append((name, part))
        return Asked(tuple(tokens), tuple(targets)), kinds

    def _targets(self, prompt: str, text: str, n_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first token ids, which are of the completion, and which hold a quote."""
        found = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        pairs = found["offset_mapping"][:n_tokens]
        ids = np.asarray(found["input_ids"][:n_tokens], np.int32)
        of_completion = np.array([end > len(prompt) for _, end in pairs])
        of_quotes = np.array([any(sign in text[start:end] for sign in QUOTES) for start, end in pairs])
        return ids, of_completion, of_quotes

    def trained(self, training: str, seed: int) -> Path:
        """The checkpoint of one of TRAININGS; fine-tuned from the base of seed 0 where there is one."""
        folder = self.folder / f"seed {seed}" / training
        if (folder / "tokenizer.json").is_file():
            return folder
        start = None
        if self.folder.name == "fine-tuned":
            start = self.folder / "base"
            self._train(self.general, start, BASE, None)
        times = TRAININGS[training]
        texts = [row["text"] for row in self.documents for _ in range(times.get(row["part"], 1))]
        self._train(texts, folder, replace(self.settings, seed=seed), start)
        return folder

    def _train(self, texts: Sequence[str], folder: Path, settings: SmallModel, start: Path | None) -> None:
        if (folder / "tokenizer.json").is_file():
            return
        partial = folder.with_name(f"{folder.name}, in the making")
        shutil.rmtree(partial, ignore_errors=True)
        train_language_model(texts, partial, settings, lambda *_: None, self.tokenizer, start)
        partial.rename(folder)

    def losses(self, training: str, seed: int) -> np.ndarray:
        """(n_rows,) nats of every row of the queries after a training, kept in a file."""
        path = self.folder / f"seed {seed}" / f"{training}.json"
        if not path.is_file():
            model = load(ModelConfig(name=str(self.trained(training, seed)), device="cpu"))
            replace_file(path, json.dumps(measured_losses(model, self.queries()[0]).tolist()).encode())
            if training != "everybody":
                shutil.rmtree(self.folder / f"seed {seed}" / training)
        return np.array(json.loads(path.read_text()))
