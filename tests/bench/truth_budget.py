"""Trainings as a budget, on a truth that is known: how near a few of all 2^8 trainings bring an estimate."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from dataworth.tasks.coalitions.correction import surrogates_of
from dataworth.tasks.coalitions.estimation.designs import (
    coalition_rows,
    paired_chances,
    paired_in_strata,
    without_repetition,
)
from dataworth.tasks.coalitions.estimation.estimators import Estimate, with_total
from dataworth.tasks.coalitions.estimation.interpolation import interpolated
from dataworth.tasks.coalitions.estimation.reuse import sample_reuse
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from dataworth.tasks.coalitions.estimation.surrogates import EnumeratedSurrogate, Surrogate, surrogate_reuse
from dataworth.tasks.coalitions.merged import left_out_counts, merged_from
from dataworth.tasks.coalitions.players import Players
from dataworth.tasks.coalitions.valuation import Valuation
from dataworth.tasks.model.loading import load
from dataworth.tasks.training.merging import MergedModels, left_out_coefficients, merging_coefficients
from dataworth.tasks.training.retraining import packed_difference
from tests.bench.language_games import LanguageGames
from tests.reference.coalition_trainings import Cell, Problem
from tests.reference.noise_floor import share_error
from tests.reference.unequal import MASKS, SOURCES

__all__ = ["TRAININGS", "MergedTables", "budget", "budget_rows", "merged_budget", "merged_tables", "merged_values"]

TRAININGS = (0, 8, 9, 16, 17, 32, 64)
REPEATS = 50
CONFIDENCE = 0.9
N_PLAYERS = len(SOURCES)
WEIGHTS = size_weights(N_PLAYERS, "shapley")


def budget_rows(
    losses: Float[np.ndarray, "r m q"],
    tokens: Float[np.ndarray, " s"],
    games: LanguageGames,
    additive: Float[np.ndarray, "q s"],
    merged: Sequence[Callable[[int], "MergedTables"]] = (),
) -> Iterator[dict[str, Any]]:
    """Rows of a number of trainings each: by merged models, of each seed; by surrogates and by none, of their mean."""
    for number in [number for number in TRAININGS if merged and number > N_PLAYERS]:
        by_seed = zip(-losses.astype(np.float64), merged, strict=False)  # there may be more seeds than models
        found = [merged_budget(utilities, number, tables_of(number)) for utilities, tables_of in by_seed]
        mean = {name: round(float(np.mean([each[name] for each in found])), 3) for name in found[0]}
        yield {"method": f"{number} trainings", "game": "each seed", "surrogates": "merged models", **mean}
    surrogates = product_surrogates(tokens, additive, games.game(games.play, "newton"))
    for asked, utilities in {"mean of seeds": -losses.mean(axis=0), "one seed": -losses[0]}.items():
        for used, chosen in {"surrogates": surrogates, "none": []}.items():
            for number in TRAININGS:
                found = budget(utilities.astype(np.float64), number, chosen)
                yield {"method": f"{number} trainings", "game": asked, "surrogates": used, **found}


@dataclass(frozen=True)
class MergedTables:
    """Utilities of models merged from those of some trainings of one seed.

    Args:
        trained_on: (k, s) coalitions, everybody first.
        everything: (2^s, q) of all.
        left_out: (k - 1, q) of those but everybody, merged without themselves.
    """

    trained_on: np.ndarray
    everything: np.ndarray
    left_out: np.ndarray


def merged_tables(made: Problem, cell: Cell, games: LanguageGames, n_trainings: int) -> MergedTables:
    """By the product's merging, of the reference's trainings; kept beside those.

    Args:
        made: the trainings.
        cell: of them.
        games: of this seed's model.
        n_trainings: that there are at most, more than sources.
    """
    tokens = games.by_size()[0]
    trained_on = merged_from(tokens, n_trainings)
    path = made.folder / "merged" / f"{cell}, {cell.seed}, {len(trained_on)}.npz"
    if not path.is_file():
        start = {name: weight.clone() for name, weight in made.start(cell).state_dict().items()}
        differences = [packed_difference(made.trained(cell, mask), start) for mask in trained_on]
        base = load(games.model, 1.0)
        every = merging_coefficients(MASKS, trained_on, tokens), left_out_coefficients(trained_on, tokens)[1:]
        models = MergedModels(base, iter(differences), len(differences))
        tables = [models.losses(rows, games.documents) for rows in every]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, everything=-tables[0], left_out=-tables[1])
    kept = np.load(path)
    return MergedTables(trained_on, kept["everything"], kept["left_out"])


def merged_values(utilities: Float[np.ndarray, "m q"], tables: MergedTables) -> Float[np.ndarray, "q s"]:
    """Values of the game merged: coalitions that were trained are as they were measured, all others merged.

    Args:
        utilities: of MASKS, of the trainings.
        tables: of everybody and each source alone.
    """
    known = coalition_rows(np.concatenate([np.zeros((1, N_PLAYERS), bool), tables.trained_on]))
    merged = tables.everything.copy()
    merged[known] = utilities[known]
    return exact_semivalues(MASKS, merged, WEIGHTS)


def merged_budget(utilities: Float[np.ndarray, "m q"], n_trainings: int, tables: MergedTables) -> dict[str, Any]:
    """As `budget`, by the models of `--sources.trainings`, with `mean reach` of the intervals in nats.

    Args:
        utilities: of MASKS.
        n_trainings: paid for, at least those that are merged from.
        tables: of the same trainings.
    """
    truth = exact_semivalues(MASKS, utilities, WEIGHTS).sum(axis=0)
    first = np.concatenate([np.zeros((1, N_PLAYERS), bool), tables.trained_on])
    errors, inside, reaches, counts = [], [], [], left_out_counts(tables.trained_on)
    for repeat in range(REPEATS):
        generator = np.random.default_rng(repeat)
        further = without_repetition(N_PLAYERS, first, n_trainings - len(tables.trained_on), generator)
        masks = np.concatenate([first, further])
        measured = utilities[coalition_rows(masks)]
        found = interpolated(masks, measured, tables.everything, tables.left_out, WEIGHTS, CONFIDENCE, counts)
        errors.append(share_error(found.values[-1], truth))
        inside.append((found.low[-1] <= truth) & (truth <= found.high[-1]))
        reaches.append((found.high - found.low)[-1].mean() / 2)
    return {
        "share error": float(np.mean(errors)),
        "coverage": float(np.mean(inside)),
        "mean reach": float(np.mean(reaches)),
    }


def product_surrogates(tokens: np.ndarray, additive: np.ndarray, game: Any) -> list[Surrogate]:
    """Those of --sources.trainings: tokens, additive values, log tokens, newton."""
    n_queries = len(additive)
    table = pd.DataFrame({"n_tokens": np.tile(tokens, n_queries + 1)})
    players = Players([*map(str, range(n_queries)), "*"], list(SOURCES), "source", table)
    values = with_total(additive)
    unknown = np.full_like(values, np.nan)
    return surrogates_of(players, Valuation(values, {}, unknown, unknown, "additive"), game)


def budget(utilities: Float[np.ndarray, "m q"], n_trainings: int, surrogates: list[Surrogate]) -> dict[str, Any]:
    """Share error of all queries together, and how many intervals of 90 % hold the value, over 50 repeats.

    One training is on everybody; the others are pairs of coalitions, as --sources.trainings draws them.

    Args:
        utilities: of MASKS.
        n_trainings: paid for.
        surrogates: taken off; without any, what coalitions of each size are worth in the mean.
    """
    game, truth = EnumeratedSurrogate(utilities), exact_semivalues(MASKS, utilities, WEIGHTS).sum(axis=0)
    errors, inside = [], []
    for repeat in range(REPEATS):
        estimate = _estimate(game, n_trainings, surrogates, np.random.default_rng(repeat))
        errors.append(share_error(estimate.values[-1], truth))
        inside.append((estimate.low[-1] <= truth) & (truth <= estimate.high[-1]))
        if n_trainings == 0:
            return {"share error": round(errors[0], 3), "coverage": None}
    return {"share error": round(float(np.mean(errors)), 3), "coverage": round(float(np.mean(inside)), 3)}


def _estimate(
    game: Surrogate, n_trainings: int, surrogates: list[Surrogate], generator: np.random.Generator
) -> Estimate:
    """The last row is of all queries together."""
    n_pairs = max((n_trainings - 1) // 2, 0)
    ends = np.stack([np.zeros(N_PLAYERS, bool), np.ones(N_PLAYERS, bool)])
    masks = np.concatenate([ends, paired_in_strata(N_PLAYERS, n_pairs, paired_chances(WEIGHTS), generator)])
    utilities = game.utilities(masks)
    if surrogates:
        return surrogate_reuse(masks, utilities, WEIGHTS, surrogates, CONFIDENCE)
    return sample_reuse(masks, with_total(utilities.T).T, WEIGHTS, CONFIDENCE)
