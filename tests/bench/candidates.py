"""Documents that a model was not trained on: what is said of them, beside what training on them too came to.

Of eight sources whose sizes do not follow their worth (see tests/bench/truth.py) some are trained on, and the others
are candidates, whose order is held against the kept trainings on both: rank correlation, of all queries together and in
the mean over the packages that queries are from, by chosen coalitions. What a candidate is predicted to add is of the
model alone and with its base; what it is measured to add is one pass of the recipe over its documents, from the model,
or four, as many as the training made.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import dataworth
from dataworth.storage.locations import home
from tests.bench.truth import KEPT, groups_of, n_tokens
from tests.reference.coalition_trainings import BASE, BATCH, SEEDS, SETTINGS, Cell, Problem, Trainings, problem
from tests.reference.unequal import MASKS, SOURCES

__all__ = ["rows"]

SETTING, COUNTERFACTUAL = "fine-tuned", "epochs"
COALITIONS = 12
SIZES = (2, 6)  # of coalitions, the last excluded


def rows() -> Iterator[dict[str, Any]]:
    """One row a corpus and way to tell."""
    folder = Path(os.environ.get("DATAWORTH_BENCH") or home() / "bench")
    for name in ("unequal", "held-out"):
        kept = Trainings.open(KEPT / f"{name}.npz")
        made = problem(name, kept.corpus, folder)
        utilities = -kept.losses[f"{SETTING}, {COUNTERFACTUAL}"].astype(np.float64)
        compared: dict[str, list[tuple[float, float, float]]] = {}
        for number, mask in enumerate(_coalitions()):
            others = np.flatnonzero(~mask)
            by_seed = _gains(utilities, mask, others)
            truth, groups = by_seed.mean(axis=0), groups_of(made.corpus)
            tokens = np.tile(n_tokens(made)[others], (len(groups), 1))
            found = {"tokens": tokens, **_said(made, mask, SEEDS[number % len(SEEDS)])}
            ceiling = [_agreement(one, by_seed.mean(axis=0), groups) for one in by_seed]
            compared.setdefault("one seed of the truth", []).append(tuple(np.mean(ceiling, axis=0)))
            for what, values in found.items():
                compared.setdefault(what, []).append(_agreement(values, truth, groups))
        for what, each in compared.items():
            together, by_group, size = zip(*each, strict=True)
            yield {
                "corpus": name,
                "told by": what,
                "spearman": round(float(np.mean(together)), 2),
                "spearman by group": round(float(np.mean(by_group)), 2),
                "standard error by group": round(float(np.std(by_group, ddof=1) / np.sqrt(len(by_group))), 2),
                "median of size over truth": round(float(np.median(size)), 2),
            }


def _coalitions() -> list[np.ndarray]:
    """That are trained on."""
    generator = np.random.default_rng(5)
    found = []
    for _ in range(COALITIONS):
        members = generator.permutation(len(SOURCES))[: int(generator.integers(*SIZES))]
        found.append(np.isin(np.arange(len(SOURCES)), members))
    return found


def _gains(utilities: np.ndarray, mask: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(r, q, c) nats that training on each of the others, too, took off, by seed."""
    numbers = {each.tobytes(): number for number, each in enumerate(MASKS)}
    before = utilities[:, numbers[mask.tobytes()]]
    after = [utilities[:, numbers[(mask | (np.arange(len(mask)) == other)).tobytes()]] for other in others]
    return np.stack([each - before for each in after], axis=2)


def _said(made: Problem, mask: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """(q, c) by every way to tell, of a model of the coalition."""
    cell = Cell(SETTING, COUNTERFACTUAL, seed)
    folder = made.folder / "candidates" / f"{''.join(str(int(each)) for each in mask)}-{seed}"
    if not (folder / "model.safetensors").is_file():
        made.trained(cell, mask).save_pretrained(folder)
        made.tokenizer.save_pretrained(folder)
    own = {SOURCES[number] for number in np.flatnonzero(mask)}
    for file, is_own in (("corpus.jsonl", True), ("candidates.jsonl", False)):
        chosen = [row for row in made.corpus.documents if (row["source"] in own) == is_own]
        (folder / file).write_text("".join(f"{json.dumps(row)}\n" for row in chosen))
    ids, others = [row["id"] for row in made.corpus.queries], [source for source in SOURCES if source not in own]
    tokens = sum(map(len, made.rows)) / len(made.rows)
    recipe = SETTINGS[SETTING]
    found = {}
    base = {"base": str(made.base)}
    for what, model, epochs in (("the model", {}, 1), ("", {}, 4), ("the model and its base", base, 0)):
        valuation = dataworth.value(
            *(str(folder), None, str(folder / "corpus.jsonl"), str(made.queries_file)),
            store=folder / "store",
            model=model,
            candidates={"files": str(folder / "candidates.jsonl"), "epochs": epochs},
            corpus={"max_length": BASE.positions},
            sources={"game": "additive"},
            training={
                "batch_tokens": round(BATCH * tokens),
                "learning_rate": recipe.learning_rate,
                "weight_decay": recipe.weight_decay,
                "seed": seed,
            },
        )
        table = valuation.candidates
        passes = {1: "one pass", 4: "four passes"}
        columns = {"value": what} | ({"measured": f"{passes[epochs]} over it, measured"} if epochs else {})
        for column, named in ((column, named) for column, named in columns.items() if named):
            found[named] = table.pivot(index="query_id", columns="source", values=column).loc[ids, others].to_numpy()
    return found


def _agreement(values: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """Rank correlation of all queries together, in the mean of the groups, and the ratio of what is added in all."""
    by_group = [
        float(spearmanr(values[groups == one].sum(axis=0), truth[groups == one].sum(axis=0)).statistic)
        for one in dict.fromkeys(groups)
    ]
    together = spearmanr(values.sum(axis=0), truth.sum(axis=0)).statistic
    return (
        float(together),
        float(np.mean(by_group)),
        float(np.abs(values.sum(axis=0)).sum() / np.abs(truth.sum(axis=0)).sum()),
    )
