"""Values that a few trainings measure, certified, with an interval.

Where there are trainings enough for everybody and every source alone, models of all other coalitions are merged from
these, and from everybody but each where there are as many; what they miss is interpolated from further trainings. With
fewer, the game's values are a surrogate that pairs of trainings correct.
"""

from dataclasses import replace

import numpy as np

from dataworth.storage.coalitions import UtilityStore
from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.estimation.designs import (
    all_coalitions,
    leave_one_out,
    paired_chances,
    paired_in_strata,
    without_repetition,
)
from dataworth.tasks.coalitions.estimation.estimators import Estimate, exact, with_total
from dataworth.tasks.coalitions.estimation.interpolation import interpolated
from dataworth.tasks.coalitions.estimation.sampling import MAX_ENUMERATED, widest_interval
from dataworth.tasks.coalitions.estimation.semivalues import size_weights
from dataworth.tasks.coalitions.estimation.surrogates import (
    EnumeratedSurrogate,
    LinearSurrogate,
    Surrogate,
    surrogate_reuse,
)
from dataworth.tasks.coalitions.estimation.utilities import Utilities
from dataworth.tasks.coalitions.games.retrain import Retrain
from dataworth.tasks.coalitions.games.source_game import Game, Material
from dataworth.tasks.coalitions.merged import Merged, left_out_counts
from dataworth.tasks.coalitions.players import Players
from dataworth.tasks.coalitions.valuation import ASKED_NOW, Valuation, with_queries
from dataworth.tasks.progress import run_logger

__all__ = ["corrected", "surrogates_of"]

# Whose values these are, whatever game they were corrected from.
RETRAIN = "retrain"
# Pairs of coalitions after which it is looked whether the values are known well enough.
LEAST_PAIRS = 4


def corrected(material: Material, found: Valuation, game: Game | None, kept: UtilityStore) -> Valuation:
    """The semivalues of the game retrain, from at most so many trainings as the settings pay for.

    One coalition after another is trained on until the interval of every source is within the tolerance. Pairs give
    values that are unbiased for those of all trainings, whatever the game was; how good it was decides their error.
    Merged models, of which there is none with as few trainings as sources, give values whose bias vanishes
    with the coalitions that are left, and on the bench of truth a third of that error.

    Args:
        material: with how to train.
        found: by the game, whose values are a surrogate.
        game: its coalitions, a further one; None: it has none.
        kept: utilities of coalitions that were trained on, and gets to know.
    """
    sources, names = material.sources, material.players.names
    with Retrain.made(material, kept) as trained:
        merged = Merged(material, trained, kept)
        last_in = sources.semivalue == "leave_one_out" and sources.trainings > len(names)
        merges = merged.possible and not last_in
        if merges:
            merged.begin()
        checked = trained.check()
        for line in checked.sentences():
            run_logger().info(line)
        if not checked.reliable and sources.fallback:
            run_logger().warning("%s: not corrected (%s)", checked.reason, setting("sources.trainings"))
            kept.drop_weights()
            return found.with_facts(certified=False, **{"not corrected": checked.reason})
        if not merges:
            kept.drop_weights()  # of the game, which may have merged
        if last_in:
            masks = leave_one_out(len(names))
            utilities = Utilities(trained.utilities, len(names), trained.known())
            estimate = exact(masks, with_total(utilities(masks).T).T, _weights(material), sources.confidence)
            how = f"trainings on everybody, and on everybody but each of {len(names)} sources"
        elif merges:
            estimate = _merged_estimate(material, trained, merged)
            how = f"{estimate.n_coalitions - 1} trainings, and models merged from them"
        else:
            estimate = _estimate(material, trained, surrogates_of(material.players, found, game))
            how = f"{found.game}, corrected by {estimate.n_coalitions - 1} trainings"
    facts = {
        **checked.facts(),
        "estimator": how,
        "unbiased": not merges,
        "widest interval": widest_interval(estimate.of_queries([-1])),
        "coalitions": estimate.n_coalitions - int(not last_in),  # nobody is not trained on
        ASKED_NOW: trained.n_trained,
        "utility": "retrained",
        "certified": checked.reliable,
        "uncorrected": {name: float(value) for name, value in zip(names, found.values[-1], strict=True)},
    }
    complete = len(names) == 1 or last_in or (merges and estimate.n_coalitions == 2 ** len(names))
    values = Valuation.of_estimate(estimate, RETRAIN, {**found.facts, **facts}, exact=complete)
    return replace(with_queries(values, sources.confidence), overlap=found.overlap)


def surrogates_of(players: Players, found: Valuation, game: Game | None) -> list[Surrogate]:
    """Games that resemble the trainings: by tokens, by the values that were found, and by their own coalitions.

    Args:
        players: the sources.
        found: by the game.
        game: its coalitions; of more than 16 players they are not asked.
    """
    n_queries, tokens = len(found.values) - 1, players.column("n_tokens")[0].astype(np.float64)
    by_size = np.tile(tokens / tokens.sum(), (n_queries, 1))
    surrogates: list[Surrogate] = [LinearSurrogate(by_size), LinearSurrogate(found.values[:-1])]
    if len(tokens) > MAX_ENUMERATED:
        return surrogates
    masks = all_coalitions(len(tokens))
    logs = np.log(np.maximum(masks @ tokens, 1.0))
    surrogates.append(EnumeratedSurrogate(np.tile(logs[:, None], n_queries)))
    if game is not None:
        surrogates.append(EnumeratedSurrogate(game.utilities(masks)))
    return surrogates


def _estimate(material: Material, trained: Retrain, surrogates: list[Surrogate]) -> Estimate:
    """From pairs of coalitions, with surrogates taken off."""
    sources, n_players = material.sources, len(material.players.names)
    weights = _weights(material)
    ends = np.stack([np.zeros(n_players, bool), np.ones(n_players, bool)])
    n_pairs = (sources.trainings - 1) // 2 if n_players > 1 else 0
    pairs = np.zeros((0, n_players), bool)
    if n_pairs:
        pairs = paired_in_strata(n_players, n_pairs, paired_chances(weights), np.random.default_rng(sources.seed))
    utilities = Utilities(trained.utilities, n_players, trained.known())
    done = min(n_pairs, LEAST_PAIRS)
    while True:
        masks = np.concatenate([ends, pairs[: 2 * done]])
        estimate = surrogate_reuse(masks, utilities(masks), weights, surrogates, sources.confidence)
        if done >= n_pairs or widest_interval(estimate.of_queries([-1])) <= sources.tolerance:
            return estimate
        done += 1


def _weights(material: Material) -> np.ndarray:
    sources = material.sources
    return size_weights(len(material.players.names), sources.semivalue, sources.alpha, sources.beta)


def _merged_estimate(material: Material, trained: Retrain, merged: Merged) -> Estimate:
    """From models that were trained on one source, and on all but one; from models merged of them; from others."""
    sources, n_players = material.sources, len(material.players.names)
    weights = _weights(material)
    first = np.concatenate([np.zeros((1, n_players), bool), merged.trained_on])
    n_further = max(0, sources.trainings - len(merged.trained_on))
    further = without_repetition(n_players, first, n_further, np.random.default_rng(sources.seed))
    everything, left_out, counts = merged.everything(), merged.left_out(), left_out_counts(merged.trained_on)
    merged.done()
    utilities, done = Utilities(trained.utilities, n_players, trained.known()), 0
    while True:
        masks = np.concatenate([first, further[:done]])
        estimate = interpolated(masks, utilities(masks), everything, left_out, weights, sources.confidence, counts)
        if done >= len(further) or widest_interval(estimate.of_queries([-1])) <= sources.tolerance:
            return estimate
        done += 2
