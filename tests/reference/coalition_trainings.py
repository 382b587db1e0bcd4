"""A tiny language model trained on every coalition of unequal sources, resumably, and what was measured kept in a file.

Three settings (fine-tuned from a base, from nothing, LoRA on the base), three seeds or more, two
counterfactuals: `epochs` (without a source fewer steps are made) and `steps` (as many steps as everybody makes, on
what is left). Nobody trains nothing. A seed draws the order of the documents, and the weights where they are drawn;
documents that two coalitions have in common come in the same order in both, so that a difference is less noise. A
copy without its original is trained on as the original would be: the same documents in the same order.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from dataworth.storage.durable import replace_file
from dataworth.tasks.training.small_model import SmallModel, train_language_model, train_steps, train_tokenizer
from tests.reference.unequal import MASKS, RECIPES, SOURCES, Unequal, unequal

__all__ = [
    "ADAPTERS",
    "BASE",
    "BATCH",
    "COUNTERFACTUALS",
    "SEEDS",
    "SETTINGS",
    "Cell",
    "Problem",
    "Trainings",
    "canonical",
    "seeds_of",
    "trainings",
]

SEEDS = (0, 1, 2)
# From random weights trainings differ more.
MORE_SEEDS = {("from nothing", "epochs"): 4, ("from nothing", "steps"): 15}
COUNTERFACTUALS = ("epochs", "steps")
EVERYBODY = int(np.flatnonzero(MASKS.all(axis=1))[0])
BATCH = 12  # documents
BASE = SmallModel(
    vocabulary=512, hidden=64, layers=2, heads=4, intermediate=176, positions=96, epochs=2, batch_tokens=1024,
    learning_rate=6e-3,
)  # fmt: skip
RANK, ALPHA = 32, 64
ADAPTERS = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
SETTINGS = {
    "fine-tuned": replace(BASE, epochs=4, learning_rate=6e-3, weight_decay=0.0),
    "from nothing": replace(BASE, epochs=4, learning_rate=1.5e-2),
    "LoRA": replace(BASE, epochs=4, learning_rate=1e-2, weight_decay=0.0),
}


def seeds_of(setting: str, counterfactual: str) -> tuple[int, ...]:
    """Of the trainings of a table: as many as know the shares of all queries to 0.03."""
    return tuple(range(MORE_SEEDS.get((setting, counterfactual), len(SEEDS))))


def canonical(mask: Bool[np.ndarray, " s"]) -> Bool[np.ndarray, " s"]:
    """The coalition whose documents are the same: the original in the place of a copy without it."""
    original, copy = SOURCES.index("short"), SOURCES.index("copy")
    found = mask.copy()
    found[[original, copy]] = mask[original] | mask[copy], mask[original] & mask[copy]
    return found


@dataclass(frozen=True)
class Cell:
    """One table of trainings.

    Args:
        setting: of SETTINGS.
        counterfactual: of COUNTERFACTUALS.
        seed: of `seeds_of` both.
    """

    setting: str
    counterfactual: str
    seed: int

    def __str__(self) -> str:
        return f"{self.setting}, {self.counterfactual}"


class Problem:
    """Corpus, tokenizer and base, in a folder of their own; the base is trained where it is not there yet.

    Args:
        corpus: with texts for a base.
        folder: for everything.
    """

    def __init__(self, corpus: Unequal, folder: Path) -> None:
        self.corpus, self.folder, self.base = corpus, folder, folder / "base"
        self.corpus_file, self.queries_file = folder / "corpus.jsonl", folder / "queries.jsonl"
        if not (self.base / "model.safetensors").is_file():
            tokenizer = train_tokenizer(corpus.general, BASE.vocabulary)
            train_language_model(corpus.general, self.base, BASE, lambda *_: None, tokenizer)
        asked = [{field: row[field] for field in ("id", "prompt", "completion")} for row in corpus.queries]
        for path, rows in ((self.corpus_file, corpus.documents), (self.queries_file, asked)):
            if not path.is_file():
                replace_file(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(self.base)
        self.rows = [
            torch.tensor(self.tokenizer(row["text"])["input_ids"][: BASE.positions]) for row in corpus.documents
        ]
        self.sources = np.array([SOURCES.index(row["source"]) for row in corpus.documents])
        self.questions = [self._question(row) for row in corpus.queries]

    def _question(self, query: Mapping[str, str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of prompt and completion as one text, and the labels of the completion's."""
        found = self.tokenizer(query["prompt"] + query["completion"], return_offsets_mapping=True)
        ids = torch.tensor(found["input_ids"])
        ends = torch.tensor([end for _, end in found["offset_mapping"]])
        return ids, torch.where(ends > len(query["prompt"]), ids, -100)

    def batches(self, cell: Cell, mask: Bool[np.ndarray, " s"]) -> list[np.ndarray]:
        """Documents of each step; the same keys sort them whatever the coalition."""
        epochs = SETTINGS[cell.setting].epochs
        members = np.flatnonzero(canonical(mask)[self.sources])
        if len(members) == 0:
            return []
        own, everybody = (-(-len(part) // BATCH) for part in (members, self.rows))
        n_steps = epochs * (own if cell.counterfactual == "epochs" else everybody)
        found: list[np.ndarray] = []
        for epoch in range(-(-n_steps // own)):
            keys = np.random.default_rng((cell.seed, epoch)).random(len(self.rows))
            order = members[np.argsort(keys[members])]
            found += [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
        return found[:n_steps]

    def start(self, cell: Cell) -> torch.nn.Module:
        """The model that training begins from."""
        if cell.setting != "from nothing":
            model = LlamaForCausalLM.from_pretrained(self.base)
            if cell.setting != "LoRA":
                return model
            torch.manual_seed(cell.seed)
            return get_peft_model(model, ADAPTERS)
        torch.manual_seed(cell.seed)
        return LlamaForCausalLM(LlamaConfig.from_pretrained(self.base))

    def trained(
        self,
        cell: Cell,
        mask: Bool[np.ndarray, " s"],
        on_step: Callable[[torch.nn.Module, int, int], None] = lambda *_: None,
    ) -> torch.nn.Module:
        """The model of a coalition; `on_step` is called with the model, the steps made, and all of them."""
        model, batches = self.start(cell).train(), self.batches(cell, mask)

        def loss_of(step: int) -> torch.Tensor:
            rows = [self.rows[place] for place in batches[step]]
            return _losses(model, rows, rows, "mean")

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        train_steps(
            trained, len(batches), loss_of, SETTINGS[cell.setting], lambda step, steps, _: on_step(model, step, steps)
        )
        return model.eval()

    @torch.no_grad()
    def losses(self, model: torch.nn.Module) -> Float[np.ndarray, " q"]:
        """Nats of each query, summed over the tokens of its completion."""
        ids, labels = zip(*self.questions, strict=True)
        found = _losses(model, ids, labels, "none").view(len(ids), -1).sum(dim=1)
        return found.numpy().astype(np.float32)

    def checkpoint(self, cell: Cell) -> Path:
        """Folder of everybody's model, LoRA merged, and in it `base`, what training began from."""
        folder = self.folder / "models" / f"{cell.setting}-{cell.seed}"
        if not (folder / "model.safetensors").is_file():
            for model, place in ((self.start(cell), folder / "base"), (self.trained(cell, MASKS[EVERYBODY]), folder)):
                self._save(cell, model, place)
        return folder

    def on_the_way(self, cell: Cell, n_checkpoints: int) -> list[Path]:
        """Folders of checkpoints of everybody's training at even distances, LoRA merged."""
        n_steps = len(self.batches(cell, MASKS[EVERYBODY]))
        marks = [round(n_steps * number / (n_checkpoints + 1)) for number in range(1, n_checkpoints + 1)]
        folders = {mark: self.checkpoint(cell) / f"checkpoint-{mark}" for mark in marks}
        missing = {mark for mark, folder in folders.items() if not (folder / "model.safetensors").is_file()}

        def keep(model: torch.nn.Module, step: int, _: int) -> None:
            if step in missing:
                self._save(cell, copy.deepcopy(model), folders[step])

        if missing:
            self.trained(cell, MASKS[EVERYBODY], keep)
        return list(folders.values())

    def _save(self, cell: Cell, model: torch.nn.Module, place: Path) -> None:
        merged = model.merge_and_unload() if cell.setting == "LoRA" else model
        merged.save_pretrained(place)
        self.tokenizer.save_pretrained(place)


def _losses(
    model: torch.nn.Module, ids: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], reduction: str
) -> torch.Tensor:
    """Cross-entropy of the next tokens; padding stands behind a text and is seen by nothing that counts."""
    padded = torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True)
    targets = torch.nn.utils.rnn.pad_sequence(list(labels), batch_first=True, padding_value=-100)[:, 1:]
    logits = model(input_ids=padded).logits[:, :-1]
    return cross_entropy(logits.transpose(1, 2), targets, reduction=reduction)


@dataclass(frozen=True)
class Trainings:
    """What was measured after every training, with the texts it was measured on.

    Args:
        corpus: of the sources.
        losses: by setting and counterfactual ("fine-tuned, epochs") (seeds, 2^8, q) nats, rows as MASKS.
    """

    corpus: Unequal
    losses: Mapping[str, np.ndarray]

    def save(self, path: Path, fingerprint: str) -> None:
        """Compressed, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = np.frombuffer(json.dumps(asdict(self.corpus)).encode(), np.uint8)
        written = path.with_name(f".{path.name}")
        with written.open("wb") as file:
            np.savez_compressed(file, texts=texts, fingerprint=np.array(fingerprint), **self.losses)
        written.replace(path)

    @classmethod
    def open(cls, path: Path) -> "Trainings":
        """What `save` wrote."""
        with np.load(path) as kept:
            corpus = Unequal(**json.loads(kept["texts"].tobytes()))
            return cls(corpus, {name: kept[name] for name in kept.files if name not in ("texts", "fingerprint")})

    @staticmethod
    def fingerprint(path: Path) -> str | None:
        """Of what a file was made from; None without one."""
        if not path.is_file():
            return None
        with np.load(path) as kept:
            return str(kept["fingerprint"])


def fingerprint(corpus: Unequal, name: str) -> str:
    """Of the texts, the recipe and everything that decides a training."""
    decides = [asdict(corpus), asdict(RECIPES[name]), asdict(BASE), BATCH, RANK, ALPHA, SOURCES, SEEDS]
    decides.append({setting: asdict(each) for setting, each in SETTINGS.items()})
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def trainings(name: str, cells: Sequence[Cell], folder: Path, kept: Path, processes: int) -> Trainings:
    """Of the kept file where it holds these cells; else trained, going on where it was stopped, and kept.

    Args:
        name: of the recipe.
        cells: to train; of one table its first seeds, one after another.
        folder: for what is made meanwhile.
        kept: the file.
        processes: that train at once.
    """
    corpus = Trainings.open(kept).corpus if kept.is_file() else unequal(RECIPES[name])
    print_of = fingerprint(corpus, name)
    found = dict(Trainings.open(kept).losses) if Trainings.fingerprint(kept) == print_of else {}
    place = folder / name / print_of[:16]
    for table in dict.fromkeys(map(str, cells)):
        there = list(found.get(table, ()))
        missing = [cell for cell in cells if str(cell) == table][len(there) :]
        if missing:
            Problem(corpus, place)  # its base, before processes ask for it
            found[table] = np.stack([*there, *_measured(place, missing, processes)])
            Trainings(corpus, found).save(kept, print_of)
    return Trainings(corpus, found)


def problem(name: str, corpus: Unequal, folder: Path) -> Problem:
    """The problem of some kept texts, in the folder that its trainings were made in."""
    return Problem(corpus, folder / name / fingerprint(corpus, name)[:16])


def _measured(folder: Path, cells: Sequence[Cell], processes: int) -> Iterator[np.ndarray]:
    """(2^8, q) nats of each cell."""
    chosen = [canonical(mask) for mask in MASKS]
    numbers = {mask.tobytes(): number for number, mask in enumerate(MASKS)}
    trained_as = [numbers[mask.tobytes()] for mask in chosen]
    work = [(cell, number) for cell in cells for number in sorted(set(trained_as))]
    paths = {(cell, number): _piece(folder, cell, number) for cell, number in work}
    missing = [each for each in work if not paths[each].is_file()]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(_train, folder, *each) for each in missing]):
            done.result()
    for cell in cells:
        yield np.stack([np.load(paths[cell, number]) for number in trained_as])


def _piece(folder: Path, cell: Cell, number: int) -> Path:
    """Where the losses of a training are kept; everybody and nobody are the same under both counterfactuals."""
    sizes = MASKS[number].sum()
    counterfactual = cell.counterfactual if 0 < sizes < len(SOURCES) else "both"
    return folder / "losses" / f"{cell.setting}, {cell.seed}, {counterfactual}, {number}.npy"


@lru_cache(maxsize=1)
def _problem(folder: Path) -> Problem:
    torch.set_num_threads(1)
    disable_progress_bar()
    rows = [
        [json.loads(line) for line in (folder / file).read_text().splitlines()]
        for file in ("corpus.jsonl", "queries.jsonl")
    ]
    return Problem(Unequal(*rows, []), folder)


def _train(folder: Path, cell: Cell, number: int) -> None:
    made = _problem(folder)
    path = _piece(folder, cell, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    losses = made.losses(made.trained(cell, MASKS[number]))
    written = path.with_name(f".{path.name}")
    with written.open("wb") as file:
        np.save(file, losses)
    written.replace(path)
