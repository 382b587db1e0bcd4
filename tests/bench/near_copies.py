"""A source and its near copy: scores of pairs, values of both, and both left out in turn; projection, style or fault.

What was trained and scored is kept in $DATAWORTH_BENCH (default: ~/.dataworth/bench), so that a stopped bench goes on
there. Values and effects are nats of the queries' completions, summed over queries: a value is a sum of scores divided
by the number of training windows, which is what leaving the documents out would add to the loss to first order.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.locations import home
from dataworth.tasks.attribution.logra import fitted
from dataworth.tasks.attribution.rows import all_rows, row_products
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.corpus.examples import CorpusExamples
from dataworth.tasks.corpus.steps import prepare_corpus
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.projection.config import ProjectionConfig
from tests.reference.near_copies import COPY, SETTINGS, TRAININGS, TWINS, VARIANTS, NearCopies
from tests.reference.whole_fisher import whole_scores

__all__ = ["rows"]

SEEDS = range(3)
# Trained from nothing the default alone is looked at, which is enough to see whether it is the same there.
THOROUGH = "fine-tuned"
NONE = ProjectionConfig(kind="identity")
# Seeds draw the random projection and the labels of the curvature.
METHODS: dict[str, list[tuple[ProjectionConfig, CurvatureConfig]]] = {
    "random 16, Fisher": [(ProjectionConfig(seed=seed), CurvatureConfig(seed=seed)) for seed in range(3)],
    "random 32, Fisher": [(ProjectionConfig(rank=32, seed=seed), CurvatureConfig(seed=seed)) for seed in range(2)],
    "PCA 64, EK-FAC": [(ProjectionConfig(kind="pca", rank=64), CurvatureConfig(kind="ekfac"))],
    "no projection, EK-FAC": [(NONE, CurvatureConfig(kind="ekfac"))],
    "no projection, no curvature": [(NONE, CurvatureConfig(kind="none"))],
}
# By default a tenth of the mean eigenvalue; a hundredth is recommended for EK-FAC of language models.
RATIOS = (0.1, 0.01)
# Which block of the Fisher a parameter is in, with no projection.
SPACES: dict[str, Callable[[str], str | None]] = {
    "whole Fisher, tracked layers, each by itself": lambda name: name if "proj" in name else None,
    "whole Fisher, tracked layers, jointly": lambda name: "all" if "proj" in name else None,
    "whole Fisher, all parameters, each by itself": lambda name: name,
    "whole Fisher, all parameters, jointly": lambda _: "all",
}
DEFAULT = "random 16, Fisher"
WINDOW, SHORT_WINDOW = WINDOWS = 256, 96
PARTS = ("quotes", "rest")
STYLES = ("original's style", "copy's style", "no quotes", "other sources")
LEFT_OUT = {TWINS: "without the original's shared texts", COPY: "without the near copy"}


def rows() -> Iterator[dict[str, Any]]:
    """What training again says, then of every method and damping its pairs and its values, then what windows do."""
    torch.set_num_threads(os.cpu_count() or 1)
    folder = Path(os.environ.get("DATAWORTH_BENCH") or home() / "bench") / "near copies"
    for setting in SETTINGS:
        problem = NearCopies(folder, setting)
        problem.write()
        trainings = list(TRAININGS) if setting == THOROUGH else ["everybody", *LEFT_OUT.values()]
        losses = {name: np.array([problem.losses(name, seed) for seed in SEEDS]) for name in trainings}
        for name in trainings[1:]:
            yield {"setting": setting, "trained": name, **_by_style(losses[name] - losses["everybody"], problem)}
        for method, ratio, by_model in _scored_by_all(problem):
            about = {"setting": setting, "method": method, "damping": ratio}
            yield from (about | row for row in _pairs(by_model))
            yield from (about | row for row in _values(by_model, losses))
        sides = [[of_method(problem, seed, DEFAULT, 0, size)[RATIOS[0]] for seed in SEEDS[:1]] for size in WINDOWS]
        yield {"setting": setting, "method": DEFAULT, **_windows(*sides)}


@dataclass(frozen=True)
class Scored:
    """Scores of one model by one method.

    Args:
        scores: (2, n_rows, n_documents), divided by the number of training windows, sums over a document's windows: of
            the loss on a document's quotes and of the loss on its rest; (1, …) of the whole loss.
        sources: (n_documents,) of each document; those of variants come last, where there are any.
        kinds: of the rows: style, and part of the loss.
    """

    scores: np.ndarray
    sources: np.ndarray
    kinds: Sequence[tuple[str, str]]

    def of(self, style: str, source: str, asked: str = "", taught: str = "") -> np.ndarray:
        """(q, n) scores of a source's documents for the queries of a style; of one part of either loss, or of all."""
        chosen = self.scores[:, :, self.sources[: self.scores.shape[2]] == source]
        side = chosen.sum(axis=0) if not taught else chosen[PARTS.index(taught)]
        parts = [side[_rows(self.kinds, style, part)] for part in ((asked,) if asked else PARTS)]
        return np.sum(parts, axis=0)


def _scored_by_all(problem: NearCopies) -> Iterator[tuple[str, float, list[list[Scored]]]]:
    """Method, damping, and scores by model and seed of the method: of the first model all seeds, of others the first.

    The default scores every model, other methods the first alone.
    """
    thorough = problem.folder.name == THOROUGH
    for method in METHODS if thorough else (DEFAULT,):
        seeds = SEEDS if method == DEFAULT else SEEDS[:1]
        found = [
            [of_method(problem, seed, method, n, WINDOW) for n in range(1 if seed else len(METHODS[method]))]
            for seed in seeds
        ]
        for ratio in found[0][0]:
            yield method, ratio, [[by_ratio[ratio] for by_ratio in of_model] for of_model in found]
    for (space, ratio), scored in (_of_whole(problem, SEEDS[0]) if thorough else {}).items():
        yield space, ratio, [[scored]]


def of_method(problem: NearCopies, seed: int, method: str, number: int, window: int) -> dict[float, Scored]:
    """By damping; computed once and kept in a file."""
    projection, curvature = METHODS[method][number]
    ratios = RATIOS if curvature.kind != "none" else RATIOS[:1]
    path = problem.folder / f"seed {seed}" / f"{method}, {number}, windows of {window}.npz"
    scores = _kept(path, lambda: _scores(problem, seed, projection, curvature, ratios, window))
    return {ratio: _scored(problem, scores[str(ratio)]) for ratio in ratios}


def _of_whole(problem: NearCopies, seed: int) -> dict[tuple[str, float], Scored]:
    def computed() -> dict[str, np.ndarray]:
        model = LlamaForCausalLM.from_pretrained(problem.trained("everybody", seed)).eval()
        taught = _taught(problem, seed)
        found = whole_scores(model, taught, problem.queries()[0], SPACES, RATIOS)
        return {f"{space}, {ratio}": _by_document(part, taught.documents) for (space, ratio), part in found.items()}

    scores = _kept(problem.folder / f"seed {seed}" / "whole Fisher.npz", computed)
    pairs = [(space, ratio) for space in SPACES for ratio in RATIOS]
    return {(space, ratio): _scored(problem, scores[f"{space}, {ratio}"][None]) for space, ratio in pairs}


def _kept(path: Path, computed: Callable[[], dict[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    if not path.is_file():
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **computed())
        partial.rename(path)
    found: Mapping[str, np.ndarray] = np.load(path)
    return found


def _scored(problem: NearCopies, scores: np.ndarray) -> Scored:
    sources = [row["part"] for row in problem.documents] + [row["source"] for row in problem.variants()]
    return Scored(scores, np.array(sources), problem.queries()[1])


def _taught(problem: NearCopies, seed: int) -> CorpusExamples:
    config = ModelConfig(name=str(problem.trained("everybody", seed)), device="cpu")
    corpus = CorpusConfig(files=[str(problem.folder / "corpus.jsonl")], max_length=WINDOW)
    return CorpusExamples(CorpusStore.open(prepare_corpus(str(problem.folder / "store"), config, corpus)))


def _scores(
    problem: NearCopies,
    seed: int,
    projection: ProjectionConfig,
    curvature: CurvatureConfig,
    ratios: Sequence[float],
    window: int,
) -> dict[str, np.ndarray]:
    """By damping (2, n_rows, n_documents) as LoGra computes them, of documents that it was fitted on and of others."""
    model = load(ModelConfig(name=str(problem.trained("everybody", seed)), device="cpu"))
    taught, (windows, documents, on_quotes) = _taught(problem, seed), problem.windows(window)
    projections, columns, curvatures = fitted(model, taught, projection, curvature)
    asked = all_rows(model, projections, problem.queries()[0])[0].double().numpy()
    ready = np.stack([asked] * len(ratios))
    for where, entry in zip(columns, curvatures or (), strict=curvatures is not None):
        for number, ratio in enumerate(ratios):
            ready[number, :, where] = entry.damped(DampingConfig(value=ratio)).applied(asked[:, where])
    flat = row_products(ready.reshape(-1, asked.shape[1]), model, projections, windows) / taught.n_examples
    by_window = flat.reshape(len(ratios), len(asked), -1)
    return {
        str(ratio): np.stack([_by_document(part[:, side], documents[side]) for side in (on_quotes, ~on_quotes)])
        for ratio, part in zip(ratios, by_window, strict=True)
    }


def _by_document(scores: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """(n_rows, n_documents) sums over the windows of each."""
    found = np.zeros((documents.max() + 1, len(scores)))
    np.add.at(found, documents, scores.T)
    return found.T


def _rows(kinds: Sequence[tuple[str, str]], style: str, part: str) -> np.ndarray:
    return np.array([kind == (style, part) for kind in kinds])


def _by_style(effects: np.ndarray, problem: NearCopies) -> dict[str, Any]:
    """Nats that were added to the loss, of each seed: of every style, and of the loss on quotes alone."""
    kinds = problem.queries()[1]
    sums = {(style, part): effects[:, _rows(kinds, style, part)].sum(axis=1) for style in STYLES for part in PARTS}
    found = {style: _rounded(sums[style, "quotes"] + sums[style, "rest"]) for style in STYLES}
    return found | {f"{style}, of quotes": _rounded(sums[style, "quotes"]) for style in STYLES[:2]}


def _pairs(by_model: Sequence[Sequence[Scored]]) -> Iterator[dict[str, Any]]:
    """Originals' scores beside those of their copies, and beside their own from another seed of the method."""
    every = [scored for of_model in by_model for scored in of_model]
    for style in STYLES[:3]:
        for other in (COPY, *(VARIANTS if style == STYLES[0] else ())):
            if not every[0].of(style, other).size:
                continue
            agreed = [_agreement(one.of(style, TWINS), one.of(style, other)) for one in every]
            yield {"queries": style, "originals beside": other, **_mean(agreed)}
        again = [
            _agreement(one.of(style, source), two.of(style, source))
            for of_model in by_model
            for one, two in pairwise(of_model)
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
    for style in STYLES:
        for source, training in LEFT_OUT.items():
            kinds, effects = by_model[0][0].kinds, losses[training] - losses["everybody"]
            truth = np.sum([effects[:, _rows(kinds, style, part)] for part in PARTS], axis=0)
            by_query = [[one.of(style, source).sum(axis=1) for one in group] for group in by_model]
            terms = [np.abs(one.of(style, source)).sum() for group in by_model for one in group]
            mean = np.mean([np.mean(group, axis=0) for group in by_query], axis=0)
            yield {
                "queries": style,
                "value of": "original" if source == TWINS else "near copy",
                "by model": _rounded([np.mean(group, axis=0).sum() for group in by_query]),
                "by seed of the method": _rounded([one.sum() for one in by_query[0]]),
                "trained again": _rounded(truth.sum(axis=1)),
                "sum of absolute values of queries": _rounded(np.abs(mean).sum()),
                "sum of absolute scores": _rounded(np.mean(terms)),
                "correlation with training again by query": round(_line(mean, truth.mean(axis=0))[0], 3),
                **_by_part(by_model, style, source),
            }


def _by_part(by_model: Sequence[Sequence[Scored]], style: str, source: str) -> dict[str, float]:
    """The value as four terms, where documents' losses were taken apart."""
    every = [one for group in by_model for one in group if len(one.scores) > 1]
    pairs = [(asked, taught) for asked in PARTS for taught in PARTS] if every else []
    return {
        f"of a query's {asked} by a document's {taught}": _rounded(
            np.mean([one.of(style, source, asked, taught).sum() for one in every])
        )
        for asked, taught in pairs
    }


def _windows(whole: Sequence[Scored], cut: Sequence[Scored]) -> dict[str, Any]:
    """Originals and copies in windows of 256 tokens beside the same in windows of 96."""
    style = STYLES[0]
    found: dict[str, Any] = {"windows": f"{WINDOW} beside {SHORT_WINDOW}"}
    for name, source in (("original", TWINS), ("copy", COPY)):
        sides = [[one.of(style, source) for one in scored] for scored in (whole, cut)]
        agreed = _mean([_agreement(one, two) for one, two in zip(*sides, strict=True)])
        found |= {f"{name}, {key}": value for key, value in agreed.items()}
        found[f"values of the {name}"] = [_rounded(np.mean([part.sum() for part in side])) for side in sides]
    return found


def _mean(found: Sequence[dict[str, float]]) -> dict[str, Any]:
    return {key: float(f"{np.mean([one[key] for one in found]):.3g}") for key in found[0]}


def _rounded(values: Any) -> Any:
    return np.round(values, 2).tolist()
