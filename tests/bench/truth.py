"""Games over sources against the truth: every coalition trained. Digits (2^8 a seed) and a language model (2^6 a seed).

What was trained is kept in $DATAWORTH_BENCH (default: ~/.dataworth/bench), so that a stopped bench goes on there.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from storage.corpus import CorpusStore
from storage.locations import home
from storage.ref import StoreRef
from tasks.coalitions.config import SourcesConfig
from tasks.coalitions.games import EvaluatedGame, ExpandedGame, InteractionGame
from tasks.coalitions.newton import LayerSums, NewtonSteps, endpoint_matched, estimated_damping
from tasks.coalitions.path import path_values
from tasks.coalitions.play import Play
from tasks.coalitions.semivalues import exact_semivalues, size_weights
from tasks.coalitions.worth import evaluation, model_sums, query_expansion, query_losses
from tasks.corpus.config import CorpusConfig, QueriesConfig
from tasks.corpus.task import prepare_corpus, prepare_queries
from tasks.curvature.config import CurvatureConfig, DampingConfig
from tasks.curvature.precondition import damped_inverse
from tasks.curvature.task import fit_covariances, fit_query_factors, fit_source_sums
from tasks.gradients.config import GradientsConfig
from tasks.gradients.task import index_gradients
from tasks.model.config import ModelConfig
from tasks.model.loading import load
from tasks.projection.config import ProjectionConfig
from tasks.projection.task import make_bases
from tests.reference import digits, language
from tests.reference.digits import Network, agreement

__all__ = ["digits_rows", "language_rows", "rows"]

SEEDS = range(3)
# Steps, rate times examples, decay, momentum.
PROBLEMS = {
    "logistic, converged": (Network(), 250, 0.28, 1.0, 0.95),
    "logistic, stopped early": (Network(), 200, 1.0, 0.0, 0.0),
    "MLP 64-16-10, stopped early": (Network((16, 10)), 150, 0.8, 0.0, 0.5),
}
RANK = 32


def rows() -> Iterator[dict[str, Any]]:
    """One row a problem, seed and game."""
    torch.set_num_threads(os.cpu_count() or 1)
    folder = Path(os.environ.get("DATAWORTH_BENCH") or home() / "bench")
    for problem in PROBLEMS:
        for seed in SEEDS:
            yield from digits_rows(problem, seed, folder)
    for seed in SEEDS:
        yield from language_rows(seed, folder / "language")


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

    def losses_at(step: np.ndarray) -> np.ndarray:
        moved, first = [], 0
        for layer in reached:
            moved.append(layer.double()[None] + torch.from_numpy(step[first : first + layer.numel()]).view(layer.shape))
            first += layer.numel()
        return network.losses(moved, problem.queries, problem.query_labels).mean(axis=1)

    found = {"by size": lambda: counts.astype(np.float64)}
    found |= {"additive": lambda: (expansion.gradients @ _solved(here, pull).T)[0]}
    found |= {"interaction": lambda: InteractionGame.of(_solved(here, pull), expansion).shapley()[0]}
    go = NewtonSteps(matched, pull)
    found |= {"newton, quadratic": lambda: digits.shapley(_asked(ExpandedGame(go, expansion, 8), digits.MASKS))}
    found |= {"newton, evaluated": lambda: digits.shapley(_asked(EvaluatedGame(go, losses_at, 1, 8), digits.MASKS))}
    found |= {"path": lambda: path_values(matched, pull, expansion)[0]}
    yield from _compared(name, seed, truth, found, digits.COPIES)


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


def language_rows(seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """The games of one seed of the language model, through the tasks' own bodies."""
    worth = language.worth_of_all(folder, seed, os.cpu_count() or 1).sum(axis=1)
    problem = language.language(folder, seed)
    weights = size_weights(len(language.SOURCES), "shapley")
    truth = exact_semivalues(language.MASKS, worth[:, None], weights)[0]
    model = ModelConfig(name=str(problem.folder / "model"), base=str(problem.folder / "model" / "base"), device="cpu")
    store = str(problem.folder / "store")
    curvature = CurvatureConfig(draws=4)
    corpus = prepare_corpus.fn(store, model, CorpusConfig(files=[str(problem.corpus_file)], max_length=256))
    queries = prepare_queries.fn(store, model, QueriesConfig(file=str(problem.queries_file)))
    covariances = fit_covariances.fn(store, model, corpus, curvature, None)
    bases = make_bases.fn(store, model, ProjectionConfig(kind="pca", rank=RANK), covariances)
    gradients = index_gradients.fn(store, model, corpus, bases, GradientsConfig(dtype="float32"), "the corpus")
    asked = index_gradients.fn(store, model, queries, bases, GradientsConfig(dtype="float32"), "the queries")
    factors = fit_query_factors.fn(store, model, queries, bases, curvature)
    loaded, documents = load(model), CorpusStore.open(queries)

    def played(config: ModelConfig) -> tuple[Play, list[StoreRef]]:
        refs = fit_source_sums.fn(store, config, corpus, bases, gradients, curvature, None, n_groups=1)
        sums = model_sums([refs[name] for name in language.SOURCES], bases, config, None, DampingConfig())
        expansion = query_expansion(sums, documents, asked, factors, query_losses(loaded, documents))
        return Play(sums, expansion, evaluation(load(model), bases, documents), None), list(refs.values())

    plain, _ = played(model.model_copy(update={"base": None}))
    play, _ = played(model)
    base_losses = query_losses(load(model, 1.0), documents)
    load(model)
    check = Play(play.sums, play.expansion, evaluation(load(model), bases, documents), base_losses).checked()
    yield {"problem": "language model", "seed": seed, **check.facts()}
    copies = [language.SOURCES.index(name) for name in (language.PACKAGES[0], language.COPY)]
    tokens = CorpusStore.open(corpus).column("n_tokens").to_numpy()
    of = np.asarray(CorpusStore.open(corpus).column("source").to_pylist())
    sizes = np.array([tokens[of == name].sum() for name in language.SOURCES], np.float64)
    n_examples = CorpusStore.open(corpus).n_examples

    def additive() -> np.ndarray:
        solved = [
            damped_inverse({"fisher": layer.curvatures.sum(axis=0) / n_examples}, DampingConfig()).applied(
                layer.gradients
            )
            for layer in plain.sums.layers
        ]
        found: np.ndarray = plain.expansion.gradients.sum(axis=0) @ np.concatenate(solved, axis=1).T / n_examples
        return found

    def values(whole: Play, game: str, utility: str) -> np.ndarray:
        config = SourcesConfig(game=game, utility=utility)  # type: ignore[arg-type]
        if game == "path":
            return path_values(whole.sums.layers, whole.sums.damping, whole.expansion).sum(axis=0)
        worth_of = _asked(whole.game(config), language.MASKS)
        found: np.ndarray = exact_semivalues(language.MASKS, worth_of[:, None], weights)[0]
        return found

    games = {
        "by size": lambda: sizes,
        "additive": additive,
        "interaction": lambda: values(plain, "interaction", "quadratic"),
        "newton, quadratic": lambda: values(play, "newton", "quadratic"),
        "newton, evaluated": lambda: values(play, "newton", "evaluated"),
        "newton, evaluated, no base": lambda: values(plain, "newton", "evaluated"),
        "path": lambda: values(play, "path", "quadratic"),
    }
    yield from _compared("language model", seed, truth, games, copies)
