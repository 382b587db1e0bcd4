"""A truth that tells methods apart: eight sources whose sizes do not follow their worth, every coalition trained.

Three settings, two counterfactuals, three seeds or more (see tests/reference/unequal.py and coalition_trainings.py).
What was measured is kept in tests/bench/trainings; where its fingerprint fits nothing is trained again but everybody's
model, which estimates are made from. What is trained meanwhile lies in $DATAWORTH_BENCH (default: ~/.dataworth/bench).
"""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr

import dataworth
from dataworth.storage.locations import home
from dataworth.tasks.attribution.baselines import bm25_scores, source_sums
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from dataworth.tasks.coalitions.valuation import shares
from dataworth.tasks.training.config import TrainingConfig
from tests.bench.language_games import LanguageGames
from tests.bench.truth_budget import budget_rows, merged_tables, merged_values
from tests.reference.coalition_trainings import (
    ADAPTERS,
    BASE,
    BATCH,
    COUNTERFACTUALS,
    SETTINGS,
    Cell,
    Problem,
    problem,
    seeds_of,
    trainings,
)
from tests.reference.noise_floor import rank_ceiling, share_error, share_floor
from tests.reference.unequal import MASKS, SOURCES, Unequal

__all__ = ["KEPT", "measured_values", "model_free", "rows", "truth_row", "truth_values"]

KEPT = Path(__file__).with_name("trainings")
PROCESSES = 2
RANK = 16  # of bases, as by default
WEIGHTS = size_weights(len(SOURCES), "shapley")
# Tables by corpus; of the second one, which no setting was chosen on, one.
TABLES = {
    "unequal": [(setting, counterfactual) for setting in SETTINGS for counterfactual in COUNTERFACTUALS],
    "held-out": [("fine-tuned", "epochs")],
}
CHECKPOINTS = (1, 3, 7)  # between base and model
SCALES = np.geomspace(10, 1e5, 60)  # tokens, tried for c of a + b log(1 + tokens / c)
# Of (q, s) values.
Values = Mapping[str, np.ndarray]


def rows() -> Iterator[dict[str, Any]]:
    """One row a table and method, then trainings as a budget."""
    folder = Path(os.environ.get("DATAWORTH_BENCH") or home() / "bench")
    for name, tables in TABLES.items():
        cells = [Cell(*table, seed) for table in tables for seed in seeds_of(*table)]
        kept = trainings(name, cells, folder, KEPT / f"{name}.npz", PROCESSES)
        made = problem(name, kept.corpus, folder)
        for setting in dict.fromkeys(setting for setting, _ in tables):
            seeds = seeds_of(setting, "epochs")  # whose models estimates are made from
            games = [_games(made, Cell(setting, "epochs", seed)) for seed in seeds]
            estimated = [{key: play() for key, play in each.named().items() if key != "by size"} for each in games]
            for seed, each, found in zip(seeds, games, estimated, strict=True):
                cell = Cell(setting, "epochs", seed)
                found["ledger"] = _ledger(each, cell, made)
                for n_checkpoints in CHECKPOINTS:
                    found[f"ledger of {n_checkpoints} checkpoints"] = _on_the_way(each, cell, made, n_checkpoints)
                found |= _default(made, cell)
            for counterfactual in (each for own, each in tables if own == setting):
                table = f"{setting}, {counterfactual}"
                losses = kept.losses[table]
                where = {"corpus": name, "setting": setting, "counterfactual": counterfactual}
                whole = [] if setting == "LoRA" else games  # adapters' factors are not merged
                cells = [Cell(setting, counterfactual, seed) for seed in seeds]
                merged = [partial(merged_tables, made, cell, each) for cell, each in zip(cells, whole, strict=False)]
                for utilities, found, of_trainings in zip(-losses.astype(np.float64), estimated, merged, strict=False):
                    found["merged"] = merged_values(utilities, of_trainings(len(SOURCES) + 1))
                for row in _table(made, losses, estimated):
                    yield where | row
                for row in budget_rows(losses, n_tokens(made), games[0], estimated[0]["additive"], merged):
                    yield where | row


def _games(made: Problem, cell: Cell) -> LanguageGames:
    model = made.checkpoint(cell)
    store = made.folder / "stores" / model.name
    return LanguageGames(model, made.corpus_file, made.queries_file, SOURCES, store, BASE.positions, RANK)


def _default(made: Problem, cell: Cell) -> dict[str, np.ndarray]:
    """(q, s) of the settings that nobody chose, of the model alone and with its base."""
    model = made.checkpoint(cell)
    ids = [row["id"] for row in made.corpus.queries]
    found = {}
    for name, base in (("default", {}), ("default, with the base", {"base": str(model / "base")})):
        valuation = dataworth.value(
            *(str(model), None, str(made.corpus_file), str(made.queries_file)),
            store=made.folder / "stores" / f"default {model.name}",
            model=base,
            corpus={"max_length": BASE.positions},
            sources={"game": "additive"},
        )
        table = valuation.sources
        table = table[table["query_id"] != "*"].pivot(index="query_id", columns="source", values="value")
        found[name] = table.loc[ids, list(SOURCES)].to_numpy()
    return found


def _ledger(games: LanguageGames, cell: Cell, made: Problem) -> Float[np.ndarray, "q s"]:
    """Of one more training by the recipe, whose batches hold as many tokens, but are of windows of like length."""
    return games.ledger(_training(cell, made), ADAPTERS if cell.setting == "LoRA" else None).values.T


def _on_the_way(games: LanguageGames, cell: Cell, made: Problem, n_checkpoints: int) -> Float[np.ndarray, "q s"]:
    """Of everybody's own training, from checkpoints at even distances."""
    return games.checkpoint_ledger(made.on_the_way(cell, n_checkpoints), _training(cell, made)).values.T


def _training(cell: Cell, made: Problem) -> TrainingConfig:
    recipe = SETTINGS[cell.setting]
    n_tokens = sum(len(row) for row in made.rows)
    return TrainingConfig(
        epochs=recipe.epochs,
        batch_tokens=round(BATCH * n_tokens / len(made.rows)),
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        seed=cell.seed,
    )


def truth_values(losses: Float[np.ndarray, "r m q"]) -> Float[np.ndarray, "r q s"]:
    """Exact Shapley values of minus the loss by each seed."""
    return np.stack([exact_semivalues(MASKS, -each.astype(np.float64), WEIGHTS) for each in losses])


def n_tokens(made: Problem) -> Float[np.ndarray, " s"]:
    """Target tokens of each source."""
    return np.bincount(made.sources, [len(row) - 1 for row in made.rows], len(SOURCES))


def _table(made: Problem, losses: np.ndarray, estimated: list[dict[str, np.ndarray]]) -> Iterator[dict[str, Any]]:
    by_seed, groups = truth_values(losses), groups_of(made.corpus)
    yield truth_row(losses, groups)
    known = model_free(made.corpus, n_tokens(made), losses) | measured_values(losses)
    truth = by_seed.mean(axis=0)
    for method, values in known.items():
        yield {"method": method, **_mean_row([_compared(values, truth, groups)])}
    for method in estimated[0]:
        compared = [_compared(each[method], truth, groups) for each in estimated]
        by_model = [round(each["share error"], 3) for each in compared]
        yield {"method": method, **_mean_row(compared), "share error by seed": by_model}


def groups_of(corpus: Unequal) -> np.ndarray:
    """(q,) source whose package each query is from."""
    return np.array([row["source"] for row in corpus.queries])


def truth_row(losses: Float[np.ndarray, "r m q"], groups: np.ndarray) -> dict[str, Any]:
    """The truth's own row: its shares, how far seeds move it, and how much was taught."""
    by_seed = truth_values(losses)
    total = by_seed.sum(axis=1)
    of_groups = [by_seed[:, groups == one].sum(axis=1) for one in dict.fromkeys(groups)]
    everybody, nobody = (losses[:, MASKS.sum(axis=1) == size].sum() for size in (len(SOURCES), 0))
    return {
        "method": "truth",
        "floor": round(share_floor(total), 3),
        "floor by group": round(float(np.mean([share_floor(each) for each in of_groups])), 3),
        "rank ceiling": round(rank_ceiling(total), 3),
        "rank ceiling by group": round(float(np.mean([rank_ceiling(each) for each in of_groups])), 3),
        "loss taken off": round(float(1 - everybody / nobody), 3),
        "shares": _by_source(shares(total.mean(axis=0)[None])[0], 3),
        "nats": _by_source(total.mean(axis=0), 1),
        "spread of seeds, nats": _by_source(total.std(axis=0, ddof=1), 1),
    }


def _by_source(values: np.ndarray, digits: int) -> dict[str, float]:
    return {source: round(float(value), digits) for source, value in zip(SOURCES, values, strict=True)}


def model_free(
    corpus: Unequal, tokens: Float[np.ndarray, " s"], losses: Float[np.ndarray, "r m q"]
) -> dict[str, np.ndarray]:
    """(q, s) values that look at no model; g is fitted to what was measured of all coalitions."""
    n_queries = losses.shape[2]
    texts, sources = ([row[key] for row in corpus.documents] for key in ("text", "source"))
    likeness = bm25_scores(texts, [row["prompt"] + row["completion"] for row in corpus.queries])
    return {
        "tokens": np.tile(tokens, (n_queries, 1)),
        "equal parts": np.ones((n_queries, len(SOURCES))),
        "Shapley of g(tokens)": scaling_law(tokens, -losses.mean(axis=0).astype(np.float64)),
        "BM25": source_sums(likeness, sources, SOURCES),
    }


def scaling_law(tokens: Float[np.ndarray, " s"], utilities: Float[np.ndarray, "m q"]) -> Float[np.ndarray, "q s"]:
    """Shapley values of a_q + b_q log(1 + tokens / c), fitted by least squares to the utilities of all coalitions."""
    counts = MASKS @ tokens
    fits = []
    for scale in SCALES:
        columns = np.stack([np.ones(len(counts)), np.log1p(counts / scale)], axis=1)
        fitted = np.linalg.lstsq(columns, utilities, rcond=None)[0]
        fits.append((float(((columns @ fitted - utilities) ** 2).sum()), columns @ fitted))
    return exact_semivalues(MASKS, min(fits, key=lambda fit: fit[0])[1], WEIGHTS)


def measured_values(losses: Float[np.ndarray, "r m q"]) -> dict[str, np.ndarray]:
    """(q, s) what single trainings tell, in the mean over seeds: without each source, with each alone, and the mean."""
    utilities, sizes = -losses.mean(axis=0).astype(np.float64), MASKS.sum(axis=1)
    alone, without = np.empty((2, losses.shape[2], len(SOURCES)))
    for mask, utility in zip(MASKS[sizes == 1], utilities[sizes == 1], strict=True):
        alone[:, int(mask.argmax())] = utility - utilities[sizes == 0][0]
    for mask, utility in zip(MASKS[sizes == len(SOURCES) - 1], utilities[sizes == len(SOURCES) - 1], strict=True):
        without[:, int(mask.argmin())] = utilities[sizes == len(SOURCES)][0] - utility
    return {
        "leave-one-out, measured": without,
        "first-in, measured": alone,
        "mean of both": (without + alone) / 2,
    }


def _compared(values: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """How near values are: of all queries together, in the mean of the groups, and what original and copies get."""
    own, due = values.sum(axis=0), truth.sum(axis=0)
    by_group = [(values[groups == one].sum(axis=0), truth[groups == one].sum(axis=0)) for one in dict.fromkeys(groups)]
    copies = {f"{source}, share": shares(own[None])[0][SOURCES.index(source)] for source in SOURCES if "copy" in source}
    return {
        "share error": share_error(own, due),
        "spearman": _rank(own, due),
        "share error by group": float(np.mean([share_error(*pair) for pair in by_group])),
        "spearman by group": float(np.mean([_rank(*pair) for pair in by_group])),
        "short, share": shares(own[None])[0][SOURCES.index("short")],
        **copies,
    }


def _rank(values: np.ndarray, truth: np.ndarray) -> float:
    """NaN of equal parts, which have no ranks."""
    return float(spearmanr(values, truth).statistic) if np.ptp(values) > 0 else float("nan")


def _mean_row(compared: list[dict[str, float]]) -> dict[str, float]:
    """The mean over everybody's models of the seeds."""
    return {key: round(float(np.mean([each[key] for each in compared])), 3) for key in compared[0]}
