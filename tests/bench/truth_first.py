"""The first truth, of nearly even sources: digits, 2^8 trainings a seed, and a language model, 2^6 a seed.

What was trained is kept in $DATAWORTH_BENCH (default: ~/.dataworth/bench), so that a stopped bench goes on there.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataworth.storage.locations import home
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from dataworth.tasks.coalitions.games.newton_steps import LayerSums, NewtonSteps, endpoint_matched, estimated_damping
from dataworth.tasks.coalitions.games.path_values import path_values
from dataworth.tasks.coalitions.games.second_order import InteractionGame
from dataworth.tasks.coalitions.games.step_games import EvaluatedGame, ExpandedGame
from tests.bench.language_games import LanguageGames
from tests.reference import digits, language
from tests.reference.digits import Network, agreement
from tests.reference.language import PACKAGES

__all__ = ["digits_rows", "language_rows", "rows"]

SEEDS = range(3)
# Steps, rate times examples, decay, momentum.
PROBLEMS = {
    "logistic, converged": (Network(), 250, 0.28, 1.0, 0.95),
    "logistic, stopped early": (Network(), 200, 1.0, 0.0, 0.0),
    "MLP 64-16-10, stopped early": (Network((16, 10)), 150, 0.8, 0.0, 0.5),
}


def rows() -> Iterator[dict[str, Any]]:
    """One row a problem, seed and game."""
    torch.set_num_threads(os.cpu_count() or 1)
    folder = Path(os.environ.get("DATAWORTH_BENCH") or home() / "bench")
    for problem in PROBLEMS:
        for seed in SEEDS:
            yield from digits_rows(problem, seed, folder)
    for setting in language.SETTINGS:
        for seed in SEEDS:
            yield from language_rows(setting, seed, folder / "the demo's language model")


def digits_rows(name: str, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """The games of one seed of a problem of digits."""
    network, steps, rate, decay, momentum = PROBLEMS[name]
    problem = digits.digits(seed)
    start = network.start(seed)
    n = len(problem.labels)
    path = folder / "digits" / f"{name}, {seed}.npz"
    if not path.is_file():
        weights = digits.trained(network, problem, start, steps, rate / n, decay, momentum)
        worth = -network.losses(weights, problem.queries, problem.query_labels).mean(axis=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        reached = {f"layer {number}": layer.numpy() for number, layer in enumerate(digits.everybody(weights))}
        np.savez(path, worth=worth, **reached)
    kept = np.load(path)
    truth = digits.shapley(kept["worth"])
    reached = [torch.from_numpy(kept[f"layer {number}"]) for number in range(len(start))]
    halfway = [(one + two) / 2 for one, two in zip(reached, start, strict=True)]
    origin = [(one - two).flatten().double().numpy() for one, two in zip(start, reached, strict=True)]
    here, between = (digits.layer_sums(network, problem, reached, at) for at in (reached, halfway))
    pull = estimated_damping(between, origin)
    if pull <= 0:
        pull = (1 - momentum) / (rate / n * steps)
    counts = np.bincount(problem.sources)
    matched = endpoint_matched(between, origin, counts, pull)
    expansion = digits.expansion(network, problem, reached)

    def losses_at(steps: np.ndarray) -> np.ndarray:
        moved, first = [], 0
        for layer in reached:
            part = torch.from_numpy(steps[:, first : first + layer.numel()])
            moved.append(layer.double()[None] + part.view(-1, *layer.shape))
            first += layer.numel()
        return network.losses(moved, problem.queries, problem.query_labels).mean(axis=1)[:, None]

    found = {"by size": lambda: counts.astype(np.float64)}
    found |= {"additive": lambda: (expansion.gradients @ _solved(here, pull).T)[0]}
    found |= {"interaction": lambda: InteractionGame.of(_solved(here, pull), expansion).shapley()[0]}
    go = NewtonSteps(matched, pull)
    found |= {"newton, quadratic": lambda: digits.shapley(_asked(ExpandedGame(go, expansion, 8), digits.MASKS))}
    found |= {"newton, evaluated": lambda: digits.shapley(_asked(EvaluatedGame(go, losses_at, 1, 8), digits.MASKS))}
    found |= {"path": lambda: path_values(matched, pull, expansion)[0]}
    alone = {"one copy alone, truth": digits.share_alone(kept["worth"], digits.MASKS, digits.COPIES)}
    for row in _compared(name, seed, truth, found, digits.COPIES):
        yield row | alone


def _asked(game: Any, masks: np.ndarray) -> np.ndarray:
    """Worth of all queries together."""
    found: np.ndarray = game.utilities(masks).sum(axis=1)
    return found


def _solved(layers: list[LayerSums], damping: float) -> np.ndarray:
    """(s, D) (H + lambda I)^-1 g_s, by layer."""
    parts = [
        np.linalg.solve(layer.curvatures.sum(axis=0) + damping * np.eye(layer.gradients.shape[1]), layer.gradients.T).T
        for layer in layers
    ]
    return np.concatenate(parts, axis=1)


def _compared(
    problem: str, seed: int, truth: np.ndarray, games: Mapping[str, Any], copies: Sequence[int]
) -> Iterator[dict[str, Any]]:
    for name, play in games.items():
        start = time.perf_counter()
        values = play()
        seconds = time.perf_counter() - start
        found = agreement(values, truth, copies)
        yield {"problem": problem, "seed": seed, "game": name, **found, "seconds": round(seconds, 2)}


def language_rows(setting: str, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """The games of one seed of the language model, through the tasks' own bodies."""
    worth = language.worth_of_all(folder, setting, seed, os.cpu_count() or 1)
    problem = language.language(folder, setting, seed)
    weights = size_weights(len(language.SOURCES), "shapley")
    truth = exact_semivalues(language.MASKS, worth, weights)
    games = LanguageGames(
        problem.folder / "model", problem.corpus_file, problem.queries_file, language.SOURCES, problem.folder / "store"
    )
    name = f"language model, {setting}"
    yield {"problem": name, "seed": seed, **games.play.checked().facts()}
    copies = [language.SOURCES.index(source) for source in (language.PACKAGES[0], language.COPY)]
    asked = problem.asked_packages()
    alone = {"one copy alone, truth": digits.share_alone(worth.sum(axis=1), language.MASKS, copies)}
    for game, played in games.named().items():
        start = time.perf_counter()
        values = played()
        seconds = time.perf_counter() - start
        found = agreement(values.sum(axis=0), truth.sum(axis=0), copies)
        by_package = [agreement(values[asked == one].sum(axis=0), truth[asked == one].sum(axis=0)) for one in PACKAGES]
        mean = {
            f"{key} by package asked": _mean([row[key] for row in by_package]) for key in ("spearman", "share error")
        }
        yield {"problem": name, "seed": seed, "game": game, **found, **mean, **alone, "seconds": round(seconds, 2)}


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 3)
