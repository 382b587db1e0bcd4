"""Trainings as a budget, on a truth that is known: how near a few of all 2^8 trainings bring an estimate."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from dataworth.tasks.coalitions.correction import surrogates_of
from dataworth.tasks.coalitions.estimation.designs import paired_chances, paired_in_strata
from dataworth.tasks.coalitions.estimation.estimators import Estimate, with_total
from dataworth.tasks.coalitions.estimation.reuse import sample_reuse
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from dataworth.tasks.coalitions.estimation.surrogates import EnumeratedSurrogate, Surrogate, surrogate_reuse
from dataworth.tasks.coalitions.players import Players
from dataworth.tasks.coalitions.valuation import Valuation
from tests.bench.language_games import LanguageGames
from tests.reference.noise_floor import share_error
from tests.reference.unequal import MASKS, SOURCES

__all__ = ["TRAININGS", "budget", "budget_rows"]

TRAININGS = (0, 8, 16, 32, 64)
REPEATS = 50
CONFIDENCE = 0.9
N_PLAYERS = len(SOURCES)
WEIGHTS = size_weights(N_PLAYERS, "shapley")


def budget_rows(
    losses: Float[np.ndarray, "r m q"],
    tokens: Float[np.ndarray, " s"],
    games: LanguageGames,
    additive: Float[np.ndarray, "q s"],
) -> Iterator[dict[str, Any]]:
    """One row a number of trainings, with surrogates and without, of the mean of all seeds and of the first alone."""
    surrogates = product_surrogates(tokens, additive, games.game(games.play, "newton"))
    for asked, utilities in {"mean of seeds": -losses.mean(axis=0), "one seed": -losses[0]}.items():
        for used, chosen in {"surrogates": surrogates, "none": []}.items():
            for number in TRAININGS:
                found = budget(utilities.astype(np.float64), number, chosen)
                yield {"method": f"{number} trainings", "game": asked, "surrogates": used, **found}


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
