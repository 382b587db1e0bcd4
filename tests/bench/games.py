"""Games of many sources: interaction of 1,000, newton of 200 at rank 16 on 24 layers, 20 sources to within 5 %.

The limit of newton is its Cholesky factorisations alone, of the same shapes, in turn with it.
"""

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tasks.coalitions.designs import antithetic_permutations, prefixes
from tasks.coalitions.games import ExpandedGame, InteractionGame, QueryExpansion
from tasks.coalitions.newton import LayerSums, NewtonSteps
from tasks.coalitions.sampling import sampled
from tasks.coalitions.semivalues import size_weights
from tests.bench.machine import interleaved, ratio

__all__ = ["rows"]

COLUMNS, LAYERS, QUERIES, LABELS = 256, 24, 16, 4
ROUNDS = 3


def drawn(n_sources: int, n_layers: int, columns: int) -> tuple[list[LayerSums], QueryExpansion]:
    """Sums of sources that partly overlap, and queries; curvatures of low rank, as few examples give."""
    generator = np.random.default_rng(0)
    layers = []
    for _ in range(n_layers):
        shared = generator.standard_normal((8, columns))
        own = generator.standard_normal((n_sources, 16, columns)).astype(np.float32)
        mixed = own + generator.standard_normal((n_sources, 16, 8)) @ shared
        gradients = mixed.sum(axis=1) / 4
        layers.append(LayerSums(gradients, mixed.transpose(0, 2, 1) @ mixed))
    d = n_layers * columns
    return layers, QueryExpansion(
        np.zeros(QUERIES), generator.standard_normal((QUERIES, d)), generator.standard_normal((QUERIES, LABELS, d))
    )


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
    yield _newton()
    layers, expansion = drawn(20, 4, COLUMNS)
    play = ExpandedGame(NewtonSteps(layers, 10.0), expansion, 20)
    start = time.perf_counter()
    found = sampled(play.utilities, 20, size_weights(20, "shapley"), 0.05, 20_000, 0.95, np.random.default_rng(0))
    yield {
        "game": "newton to 5 % of the largest value",
        "sources": 20,
        "coalitions": found.n_evaluated,
        "ended by": found.ended_by,
        "widest": round(found.widest, 3),
        "seconds": round(time.perf_counter() - start, 1),
        "estimator": found.reason,
    }


def _newton() -> dict[str, Any]:
    layers, _ = drawn(200, 1, COLUMNS)
    steps = NewtonSteps(layers * LAYERS, 10.0)
    masks = prefixes(antithetic_permutations(200, 1, np.random.default_rng(0)))[::4]
    matrices = torch.from_numpy(layers[0].curvatures[:1] + 10 * np.eye(COLUMNS)).expand(len(masks), -1, -1).contiguous()

    def factorised() -> None:
        for _ in range(LAYERS):
            torch.linalg.cholesky(matrices)

    seconds = interleaved({"solves": factorised, "newton": lambda: steps(masks) is None}, ROUNDS)
    middle, low, high = ratio(seconds["solves"], seconds["newton"])
    return {
        "game": "newton",
        "sources": 200,
        "columns": LAYERS * COLUMNS,
        "coalitions/s": round(len(masks) / float(np.median(seconds["newton"])), 1),
        "of the solves' speed": middle,
        "quartiles": f"{low} … {high}",
    }
