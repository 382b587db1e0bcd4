"""Scores on the way, no gradient kept: beside the frozen pass, beside kronfluence, and what a cut loses.

One thread, the model of the bench of indexing with random weights, 16 queries, every linear layer between embeddings
and head whole, EK-FAC of the data's labels.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dataworth.tasks.attribution.logra import fitted
from dataworth.tasks.attribution.rows import whole_space
from dataworth.tasks.capture.gradients import GradientCapture
from dataworth.tasks.capture.passes import backward_losses, gradient_rows
from dataworth.tasks.capture.positions import ProductCapture
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.curvature.precondition import damped_layers
from dataworth.tasks.gradients.cutting import Cut, Frame, Grams
from dataworth.tasks.model.halves import halves
from dataworth.tasks.model.layers import tracked_layers
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.logra import LayerProjection, layer_table
from tests.bench.indexing import BATCH, HIDDEN, LAYERS, ROUNDS, VOCABULARY, FrozenPass, batch_of, model_of
from tests.bench.machine import interleaved, ratio
from tests.reference.kronfluence import WindowDataset, fitted_analyzer, pairwise_scores

__all__ = ["rows"]

N_QUERIES, QUERY_TOKENS, N_TRAIN, TRAIN_TOKENS = 16, 32, 64, 128
ERROR, KRONFLUENCE_RANK, WHOLE_ROUNDS = 0.2, 32, 3
CURVATURE = CurvatureConfig(kind="ekfac", labels="empirical")


class Windows:
    """Rows of tokens as examples, all of one length."""

    def __init__(self, ids: Tensor) -> None:
        self.ids, self.n_examples, self.n_documents = ids, len(ids), len(ids)
        self.lengths, self.documents = np.full(len(ids), ids.shape[1]), np.arange(len(ids))

    def batch(self, numbers: np.ndarray, device: torch.device, pad_token: int) -> tuple[Tensor, Tensor, Tensor]:
        chosen = self.ids[torch.from_numpy(numbers)]
        return chosen, torch.ones_like(chosen), chosen.clone()


class OnTheWay:
    """Directions of the queries, and passes over windows.

    Args:
        plain: the model.
        damped: inverses by layer.
        queries: (q, t) tokens.
        error: of the cut; 0: none.
    """

    def __init__(self, plain: Any, damped: Any, queries: Tensor, error: float) -> None:
        self.plain, self.damped, self.queries, self.error = plain, damped, queries, error
        self.lost = 0.0

    def prepare(self) -> None:
        """The directions."""
        projections = whole_space(self.plain)
        frames = [Frame(each, self.damped[each.name]) for each in projections]
        rotated = [each.rotated.to(torch.device("cpu"), torch.float32) for each in frames]
        with GradientCapture([layer.uses for layer in self.plain.layers], rotated) as capture:
            ids = self.queries
            rows = gradient_rows(*self.plain.halves, capture, ids, torch.ones_like(ids), ids)[0].numpy()
        self.projections: Sequence[LayerProjection] = projections
        self.directions: list[Tensor] = []
        solved = [
            frame.solved(rows[:, own.columns]) for frame, own in zip(frames, layer_table(projections), strict=True)
        ]
        if not self.error:
            self.directions = [torch.from_numpy(frame.whole(own)) for frame, own in zip(frames, solved, strict=True)]
            return
        cut_projections, left = [], 0.0
        squares = sum(frame.squares(own) for frame, own in zip(frames, solved, strict=True))
        for frame, own in zip(frames, solved, strict=True):
            gram = Grams(frame)
            gram.add(own, squares)
            cut = Cut.of(frame, gram.leading(self.error))
            moved, of_left = cut.directions(own)
            left = left + of_left
            self.directions.append(torch.from_numpy(moved))
            cut_projections.append(cut.projection)
        self.projections, self.lost = cut_projections, float(np.sqrt(max(0.0, 1 - (left / squares).min())))

    def scores(self, batches: Sequence[Tensor]) -> np.ndarray:
        """(q, n) of all windows."""
        found = []
        uses = [layer.uses for layer in self.plain.layers]
        with ProductCapture(uses, self.projections, self.directions, 1) as capture:
            for ids in batches:
                capture.expect(len(ids))
                backward_losses(*self.plain.halves, ids, torch.ones_like(ids), ids, capture)
                found.append(capture.products.numpy())
        return np.concatenate(found).T


class _Plain:
    """What methods need of a model (see dataworth.tasks.model.plain.Model)."""

    def __init__(self, model: Any) -> None:
        from dataworth.tasks.model.reading import Reading

        self.model, self.halves, self.layers = model, halves(model), tuple(tracked_layers(model))
        self.n_classes, self.device, self.reading = None, torch.device("cpu"), Reading()


def rows() -> Iterator[dict[str, Any]]:
    """A pass beside its limit; then the whole work, queries included, beside kronfluence's."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    plain = _Plain(model_of(HIDDEN, LAYERS))
    train = torch.randint(0, VOCABULARY, (N_TRAIN, TRAIN_TOKENS), generator=generator)
    queries = torch.randint(0, VOCABULARY, (N_QUERIES, QUERY_TOKENS), generator=generator)
    projections, _, curvatures = fitted(plain, Windows(train), ProjectionConfig(kind="identity"), CURVATURE)
    names = [projection.name for projection in projections]
    damped = damped_layers(dict(zip(names, curvatures or (), strict=True)), DampingConfig())
    ways = {name: OnTheWay(plain, damped, queries, error) for name, error in (("whole", 0.0), ("cut", ERROR))}
    for way in ways.values():
        way.prepare()
    yield from _beside_the_limit(plain, ways)
    yield from _beside_kronfluence(ways, train, queries)


def _beside_the_limit(plain: _Plain, ways: dict[str, OnTheWay]) -> Iterator[dict[str, Any]]:
    batch = batch_of()
    works: dict[str, Callable[[], Any]] = {"frozen": FrozenPass(plain.model, batch)}
    works |= {name: (lambda way=way: way.scores([batch[0]])) for name, way in ways.items()}
    seconds = interleaved(works, ROUNDS)
    for name, way in ways.items():
        middle, low, high = ratio(seconds["frozen"], seconds[name])
        sizes = sorted({size for each in way.projections for size in (each.k_out, each.k_in)})
        yield {
            "queries": N_QUERIES,
            "gradients": name,
            "hidden": HIDDEN,
            "coordinates a side": f"{sizes[0]} … {sizes[-1]}",
            "of the frozen pass": middle,
            "quartiles": f"{low} … {high}",
            "told to be lost": round(way.lost, 3),
        }


def _beside_kronfluence(ways: dict[str, OnTheWay], train: Tensor, queries: Tensor) -> Iterator[dict[str, Any]]:
    def loss(model: Any, batch: Any, sample: bool) -> Tensor:
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
        return cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction="sum")

    datasets = [WindowDataset([(row, row) for row in ids]) for ids in (train, queries)]
    modules = [layer.name for layer in ways["whole"].plain.layers]
    with tempfile.TemporaryDirectory() as folder:
        analyzer = fitted_analyzer(
            Path(folder), model_of(HIDDEN, LAYERS), loss, datasets[0], batch_size=BATCH, modules=modules
        )
        found: dict[str, np.ndarray] = {}
        seconds: dict[str, list[float]] = {}

        def measured(name: str, work: Callable[[], np.ndarray]) -> None:
            begun = time.perf_counter()
            found[name] = work()
            seconds.setdefault(name, []).append(time.perf_counter() - begun)

        for number in range(WHOLE_ROUNDS):
            for name, way in ways.items():
                measured(name, lambda way=way: (way.prepare(), way.scores(train.split(BATCH)))[1])
            for name, rank in (("kronfluence", None), (f"kronfluence, rank {KRONFLUENCE_RANK}", KRONFLUENCE_RANK)):
                kept = f"{name} {number}"
                measured(
                    name,
                    lambda rank=rank, kept=kept: pairwise_scores(
                        analyzer, *datasets, batch_size=BATCH, rank=rank, name=kept
                    ),
                )
    for name, scores in found.items():
        yield {
            "work": f"{N_QUERIES} queries of {QUERY_TOKENS} tokens, {N_TRAIN} windows of {TRAIN_TOKENS}",
            "scores": name,
            "seconds": round(statistics.median(seconds[name]), 2),
            "differs from whole by": float(
                f"{np.linalg.norm(scores - found['whole']) / np.linalg.norm(found['whole']):.2g}"
            ),
            "correlation": round(
                float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(scores, found["whole"], strict=True)])), 4
            ),
        }
