"""A source and its near copy: scores of pairs, values of both, and both left out in turn; projection, style or fault.

What was trained and scored is kept in $DATAWORTH_BENCH (default: ~/.dataworth/bench), so that a stopped bench goes on
there. Values and effects are nats of the queries' completions, summed over queries: a value is a sum of scores divided
by the number of training windows, which is what leaving the documents out would add to the loss to first order.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from storage.corpus import CorpusStore
from storage.locations import home
from tasks.attribution.logra import fitted
from tasks.attribution.rows import all_rows, row_products
from tasks.corpus.config import CorpusConfig
from tasks.corpus.examples import CorpusExamples
from tasks.corpus.task import prepare_corpus
from tasks.curvature.config import CurvatureConfig, DampingConfig
from tasks.curvature.precondition import damped_inverse
from tasks.model.config import ModelConfig
from tasks.model.loading import load
from tasks.projection.config import ProjectionConfig
from tests.reference.near_copies import COALITIONS, COPY, SETTINGS, TWINS, VARIANTS, NearCopies

__all__ = ["rows"]

SEEDS = range(3)
NONE = ProjectionConfig(kind="identity")
# Name → what differs by seed: the projection's where there is a random one, else the drawn labels of the curvature.
METHODS = {
    "random 16, Fisher": [(ProjectionConfig(seed=seed), CurvatureConfig()) for seed in range(4)],
    "random 16, none": [(ProjectionConfig(seed=seed), CurvatureConfig(kind="none")) for seed in range(2)],
    "random 32, Fisher": [(ProjectionConfig(rank=32, seed=seed), CurvatureConfig()) for seed in range(2)],
    "PCA 64, EK-FAC": [
        (ProjectionConfig(kind="pca", rank=64), CurvatureConfig(kind="ekfac", seed=seed)) for seed in range(2)
    ],
    "no projection, EK-FAC": [(NONE, CurvatureConfig(kind="ekfac", seed=seed)) for seed in range(2)],
    "no projection, none": [(NONE, CurvatureConfig(kind="none"))],
}
WINDOWED = ("random 16, Fisher", "no projection, EK-FAC")
WINDOW, SHORT_WINDOW = 256, 96
PARTS = ("quotes", "rest")
STYLES = ("original's style", "copy's style", "no quotes", "other sources")


def rows() -> Iterator[dict[str, Any]]:
    """What training again says, then of every method its pairs and its values, then of two what windows do."""
    torch.set_num_threads(os.cpu_count() or 1)
    folder = Path(os.environ.get("DATAWORTH_BENCH") or home() / "bench") / "near copies"
    for setting in SETTINGS:
        problem = NearCopies(folder, setting)
        problem.write()
        losses = {name: np.array([problem.losses(name, seed) for seed in SEEDS]) for name in COALITIONS}
        for name in list(COALITIONS)[1:]:
            yield {"setting": setting, "left out": name, **_by_style(losses[name] - losses["everybody"], problem)}
        for method, settings in METHODS.items():
            by_model = [[Scored.of(problem, seed, method, n) for n in range(len(settings))] for seed in SEEDS]
            about = {"setting": setting, "method": method}
            yield from (about | row for row in _pairs(by_model))
            yield from (about | row for row in _values(by_model, losses))
        for method in WINDOWED:
            whole, cut = ([Scored.of(problem, seed, method, 0, size) for seed in SEEDS] for size in (WINDOW, SHORT_WINDOW))
            yield {"setting": setting, "method": method, **_windows(whole, cut)}


@dataclass(frozen=True)
class Scored:
    """Scores of one model by one method.

    Args:
        scores: (n_rows, n_documents), divided by the number of training windows, sums over a document's windows.
        sources: (n_documents,) of each document; those of variants come last.
        kinds: of the rows: style, and part of the loss.
    """

    scores: np.ndarray
    sources: np.ndarray
    kinds: list[tuple[str, str]]

    @classmethod
    def of(cls, problem: NearCopies, seed: int, method: str, number: int, window: int = WINDOW) -> "Scored":
        """Computed once and kept in a file."""
        path = problem.folder / f"seed {seed}" / f"{method}, {number}, {window}.npy"
        queries, kinds = problem.queries()
        sources = np.array([row["part"] for row in problem.documents] + [row["source"] for row in problem.variants()])
        if not path.is_file():
            scores = _scores(problem, seed, *METHODS[method][number], window)
            with path.with_suffix(".partial").open("wb") as file:
                np.save(file, scores)
            path.with_suffix(".partial").rename(path)
        return cls(np.load(path), sources, kinds)


    def of_style(self, style: str, source: str, part: str | None = None) -> np.ndarray:
        """(q, n) scores of a source's documents for the queries of a style; of one part of their loss, or of both."""
        chosen = self.scores[:, self.sources == source]
        parts = [chosen[_rows(self.kinds, style, one)] for one in (PARTS if part is None else (part,))]
        return np.sum(parts, axis=0)


def _rows(kinds: Sequence[tuple[str, str]], style: str, part: str) -> np.ndarray:
    return np.array([kind == (style, part) for kind in kinds])


def _scores(
    problem: NearCopies, seed: int, projection: ProjectionConfig, curvature: CurvatureConfig, window: int
) -> np.ndarray:
    """(n_rows, n_documents) as LoGra computes them, of documents that it was fitted on and of others."""
    config = ModelConfig(name=str(problem.trained("everybody", seed)), device="cpu")
    model, store = load(config), str(problem.folder / "store")
    taught, scored = (
        CorpusExamples(
            CorpusStore.open(
                prepare_corpus.fn(
                    store, config, CorpusConfig(files=[str(problem.folder / f"{name}.jsonl")], max_length=length)
                )
            )
        )
        for name, length in (("corpus", WINDOW), ("scored", window))
    )
    projections, columns, matrices = fitted(model, taught, projection, curvature)
    ready = all_rows(model, projections, problem.queries()[0])[0].double().numpy()
    for where, entry in zip(columns, matrices or (), strict=matrices is not None):
        ready[:, where] = damped_inverse(entry, DampingConfig()).applied(ready[:, where])
    by_window = row_products(ready, model, projections, scored) / taught.n_examples
    found = np.zeros((scored.n_documents, len(ready)))
    np.add.at(found, scored.documents, by_window.T)
    return found.T


def _by_style(effects: np.ndarray, problem: NearCopies) -> dict[str, Any]:
    """Nats that were added to the loss, of each seed: of every style, and of the loss on quotes alone."""
    kinds = problem.queries()[1]
    sums = {
        (style, part): effects[:, _rows(kinds, style, part)].sum(axis=1) for style in STYLES for part in PARTS
    }
    found = {style: _rounded(sums[style, "quotes"] + sums[style, "rest"]) for style in STYLES}
    return found | {f"{style}, of quotes": _rounded(sums[style, "quotes"]) for style in STYLES[:2]}


def _pairs(by_model: Sequence[Sequence[Scored]]) -> Iterator[dict[str, Any]]:
    """Originals' scores beside those of their copies, and beside their own from another seed of the method."""
    every = [scored for of_model in by_model for scored in of_model]
    for style in STYLES:
        for other in (COPY, *VARIANTS):
            agreed = [_agreement(one.of_style(style, TWINS), one.of_style(style, other)) for one in every]
            yield {"queries": style, "originals beside": other, **_mean(agreed)}
        again = [
            _agreement(one.of_style(style, source), two.of_style(style, source))
            for of_model in by_model
            for one, two in zip(of_model, of_model[1:], strict=False)
            for source in (TWINS, COPY)
        ]
        if again:
            yield {"queries": style, "originals beside": "themselves, another seed of the method", **_mean(again)}


def _agreement(one: np.ndarray, two: np.ndarray) -> dict[str, float]:
    """Correlation and slope of the second on the first over documents: by query, and of sums over queries."""
    by_query = np.array([_line(x, y) for x, y in zip(one, two, strict=True)])
    summed = _line(one.sum(axis=0), two.sum(axis=0))
    return {
        "correlation by query": by_query[:, 0].mean(),
        "slope by query": by_query[:, 1].mean(),
        "correlation of sums": summed[0],
        "slope of sums": summed[1],
        "largest difference": float(np.abs(one - two).max() / np.abs(one).max()),
    }


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y))), float(x @ y / (x @ x))


def _values(by_model: Sequence[Sequence[Scored]], losses: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Values of the shared texts and of their copies, and how they agree with training again, query by query."""
    truths = {TWINS: "original's shared texts", COPY: "near copy"}
    for style in STYLES:
        for source, left_out in truths.items():
            by_query = np.array([[one.of_style(style, source).sum(axis=1) for one in group] for group in by_model])
            quotes = np.array([[one.of_style(style, source, "quotes").sum() for one in group] for group in by_model])
            kinds, effects = by_model[0][0].kinds, losses[left_out] - losses["everybody"]
            truth = sum(effects[:, _rows(kinds, style, part)] for part in PARTS)
            terms = [[np.abs(one.of_style(style, source)).sum() for one in group] for group in by_model]
            yield {
                "queries": style,
                "value of": left_out,
                "by seed of the model": _rounded(by_query.sum(axis=2).mean(axis=1)),
                "by seed of the method": _rounded(by_query.sum(axis=2).mean(axis=0)),
                "of quotes": _rounded(quotes.mean(axis=1)),
                "sum over queries of absolute values": _rounded(np.abs(by_query).sum(axis=2).mean()),
                "sum of absolute scores": _rounded(np.mean(terms)),
                "trained again": _rounded(truth.sum(axis=1)),
                "correlation with training again, by query": round(
                    _line(by_query.mean(axis=(0, 1)), truth.mean(axis=0))[0], 3
                ),
            }


def _windows(whole: Sequence[Scored], cut: Sequence[Scored]) -> dict[str, Any]:
    """Originals and copies in windows of 256 tokens beside the same in windows of 96."""
    style = STYLES[0]
    found: dict[str, Any] = {"windows": f"{WINDOW} beside {SHORT_WINDOW}"}
    for name, source in (("original", TWINS), ("copy", COPY)):
        pairs = [(one.of_style(style, source), two.of_style(style, source)) for one, two in zip(whole, cut, strict=True)]
        found |= {f"{name}, {key}": value for key, value in _mean([_agreement(*pair) for pair in pairs]).items()}
        found |= {f"values of the {name}": [_rounded(np.mean([part.sum() for part in side])) for side in zip(*pairs, strict=True)]}
    return found


def _mean(found: Sequence[dict[str, float]]) -> dict[str, Any]:
    return {key: float(f"{np.mean([one[key] for one in found]):.3g}") for key in found[0]}


def _rounded(values: Any) -> Any:
    return np.round(values, 2).tolist()
