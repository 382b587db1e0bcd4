"""Games of many sources: interaction of 1,000, newton of 200 at rank 16 on 24 layers, 20 sources to within 5 %.

The limit of newton is its Cholesky factorisations alone, of the same shapes, in turn with it.
"""

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from dataworth.tasks.cluster import dask_client
from dataworth.tasks.coalitions.estimation.designs import antithetic_permutations, prefixes
from dataworth.tasks.coalitions.estimation.sampling import sampled, widest_interval
from dataworth.tasks.coalitions.estimation.semivalues import size_weights
from dataworth.tasks.coalitions.games.expansion import QueryExpansion
from dataworth.tasks.coalitions.games.newton_steps import LayerSums, NewtonSteps
from dataworth.tasks.coalitions.games.second_order import InteractionGame
from dataworth.tasks.coalitions.games.spread import SpreadGame
from dataworth.tasks.coalitions.games.step_games import ExpandedGame
from dataworth.tasks.configuration import ClusterConfig
from tests.bench.machine import interleaved, ratio

__all__ = ["rows"]

COLUMNS, LAYERS, QUERIES, LABELS = 256, 24, 16, 4
ROUNDS = 3
RIDGE = 10.0
WORKERS = (1, 2)


def drawn(n_sources: int, columns: int) -> LayerSums:
    """Sums of sources that partly overlap, for speed alone; curvatures of low rank, as few examples give."""
    generator = np.random.default_rng(0)
    shared = generator.standard_normal((8, columns))
    own = generator.standard_normal((n_sources, 16, columns)).astype(np.float32)
    mixed = own + generator.standard_normal((n_sources, 16, 8)) @ shared
    return LayerSums(mixed.sum(axis=1) / 4, mixed.transpose(0, 2, 1) @ mixed)


def regression(n_sources: int, n_layers: int, columns: int) -> ExpandedGame:
    """Ridge regressions, one a layer, in which the game is exact: what any coalition would have trained is its step.

    Sources have from 20 to 200 examples with a few shared directions and a truth of their own near the common one.
    """
    generator = np.random.default_rng(0)
    sizes = generator.integers(20, 200, n_sources)
    layers, gradients, factors, losses = [], [], [], np.zeros(QUERIES)
    for _ in range(n_layers):
        shared, common = generator.standard_normal((8, columns)), generator.standard_normal(columns) / columns**0.5

        def rows(n: int, shared: np.ndarray = shared) -> np.ndarray:
            found: np.ndarray = generator.standard_normal((n, columns)) + generator.standard_normal((n, 8)) @ shared
            return found

        inputs = [rows(int(size)) for size in sizes]
        truths = common + 0.3 * generator.standard_normal((n_sources, columns)) / columns**0.5
        targets = [x @ own + generator.standard_normal(len(x)) for x, own in zip(inputs, truths, strict=True)]
        curvatures = np.stack([x.T @ x for x in inputs])
        pushes = np.stack([x.T @ y for x, y in zip(inputs, targets, strict=True)])
        trained = np.linalg.solve(curvatures.sum(axis=0) + RIDGE * np.eye(columns), pushes.sum(axis=0))
        layers.append(LayerSums(curvatures @ trained - pushes, curvatures))
        asked = rows(QUERIES * LABELS).reshape(QUERIES, LABELS, columns)
        missed = asked @ (trained - common) + generator.standard_normal((QUERIES, LABELS))
        gradients.append(np.einsum("ql,qlk->qk", missed, asked))
        factors.append(asked)
        losses += 0.5 * (missed**2).sum(axis=1)
    expansion = QueryExpansion(losses, np.concatenate(gradients, axis=1), np.concatenate(factors, axis=2))
    return ExpandedGame(NewtonSteps(layers, RIDGE), expansion, n_sources)


def rows() -> Iterator[dict[str, Any]]:
    """The table."""
    torch.set_num_threads(os.cpu_count() or 1)
    generator = np.random.default_rng(1)
    d = LAYERS * COLUMNS
    queries = QueryExpansion(
        np.zeros(QUERIES), generator.standard_normal((QUERIES, d)), generator.standard_normal((QUERIES, LABELS, d))
    )
    solved = generator.standard_normal((1000, d))
    start = time.perf_counter()
    game = InteractionGame.of(solved, queries)
    game.shapley()
    game.interactions()
    yield {"game": "interaction", "sources": 1000, "queries": QUERIES, "seconds": round(time.perf_counter() - start, 2)}
    yield from _newton()
    yield _sampled_to_tolerance()


def _sampled_to_tolerance() -> dict[str, Any]:
    play = regression(20, 4, COLUMNS)

    def worth(masks: np.ndarray) -> np.ndarray:
        found = play.utilities(masks)
        return np.concatenate([found, found.sum(axis=1, keepdims=True)], axis=1)

    start = time.perf_counter()
    weights = size_weights(20, "shapley")
    found = sampled(worth, 20, weights, 0.05, 20_000, 0.95, np.random.default_rng(0), decisive=-1)
    return {
        "game": "newton to 5 % of the largest value, all queries together",
        "sources": 20,
        "coalitions": found.n_evaluated,
        "ended by": found.ended_by,
        "widest": round(found.widest, 3),
        "widest of a query": round(widest_interval(found.estimate), 3),
        "seconds": round(time.perf_counter() - start, 1),
        "estimator": found.reason,
    }


def _newton() -> Iterator[dict[str, Any]]:
    """In this process against its factorisations alone, then with more and more workers."""
    layers = [drawn(200, COLUMNS)] * LAYERS
    steps = NewtonSteps(layers, 10.0)
    masks = prefixes(antithetic_permutations(200, 1, np.random.default_rng(0)))[::4]
    matrices = torch.from_numpy(layers[0].curvatures[:1] + 10 * np.eye(COLUMNS)).expand(len(masks), -1, -1).contiguous()

    def factorised() -> None:
        for _ in range(LAYERS):
            torch.linalg.cholesky(matrices)

    seconds = interleaved({"solves": factorised, "newton": lambda: steps(masks) is None}, ROUNDS)
    middle, low, high = ratio(seconds["solves"], seconds["newton"])
    table = {"game": "newton", "sources": 200, "columns": LAYERS * COLUMNS}
    yield {
        **table,
        "workers": "none: this process",
        "coalitions/s": round(len(masks) / float(np.median(seconds["newton"])), 1),
        "of the solves' speed": middle,
        "quartiles": f"{low} … {high}",
    }
    d = LAYERS * COLUMNS
    generator = np.random.default_rng(1)
    expansion = QueryExpansion(
        np.zeros(QUERIES), generator.standard_normal((QUERIES, d)), generator.standard_normal((QUERIES, LABELS, d))
    )
    for n_workers in WORKERS:
        with dask_client(ClusterConfig(workers=n_workers), n_workers) as client:
            game = SpreadGame(ExpandedGame(steps, expansion, 200), client)
            start = time.perf_counter()
            game.utilities(masks[:1])
            handing = time.perf_counter() - start
            found = interleaved({"spread": lambda game=game: game.utilities(masks) is None}, ROUNDS)
        yield {
            **table,
            "workers": n_workers,
            "coalitions/s": round(len(masks) / float(np.median(found["spread"])), 1),
            "handing out, s": round(handing, 1),
        }
