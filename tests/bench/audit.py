"""Methods against training again, on the digits (100 subsets x 5 seeds) and on three small language models.

What was trained is kept in $DATAWORTH_BENCH (default: ~/.dataworth/bench), so that a stopped bench goes on there.
"""

import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from dataworth.problems import PACKAGES, documentation_problem
from dataworth.storage.locations import home
from dataworth.tasks.attribution.methods import MethodSettings, attributor
from dataworth.tasks.capture.losses import example_losses
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.corpus.examples import Examples
from dataworth.tasks.counterfactual.designs import random_subsets
from dataworth.tasks.counterfactual.digits import DigitsProblem
from dataworth.tasks.counterfactual.evaluation import REACH
from dataworth.tasks.counterfactual.lds import Agreement, ceiling, difference, lds, predicted
from dataworth.tasks.counterfactual.problem import NamedProblem, Problem, ProblemPlace, ReplayableProblem
from dataworth.tasks.counterfactual.trainings import Outcomes
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.model.plain import Model
from dataworth.tasks.projection.config import ProjectionConfig
from tests.reference.kronfluence import RowDataset, WindowDataset, kronfluence_scores

__all__ = ["rows"]

DIGITS = (100, 5, "tests.bench.audit:five_digits")
LANGUAGE = (48, 3)
# On the demo's model the setting that is recommended for language models was chosen. It was fixed before these were
# trained, on other passages, from other bases, with other subsets and queries: by seed, the packages that are valued.
# Seeds 1 and 2 were used up by the setting before (rank 128, a tenth of the mean eigenvalue), which they showed behind.
FRESH = {3: PACKAGES, 4: ("asyncio", "idlelib", "importlib", "multiprocessing", "tkinter")}
RECOMMENDED = "recommended"
DIGITS_METHODS = (
    *(RECOMMENDED, "gauss-newton", "logra-pca", "logra-random", "logra-mask", "ekfac", "kfac", "cg", "arnoldi"),
    *("datainf", "trak", "relatif", "theta-relatif", "dot", "cosine", "embedding", "random"),
)
LANGUAGE_METHODS = (
    *(RECOMMENDED, "logra-pca", "logra-random", "ekfac", "datainf", "trak", "relatif", "dot", "cosine", "embedding"),
    *("size", "random", "replay"),
)
FRESH_METHODS = (RECOMMENDED, "ekfac", "relatif", "logra-pca", "dot", "random", "replay")
# Orders of the training whose mean `replay` takes.
ORDERS = 3


def five_digits() -> DigitsProblem:
    """The digits with five checkpoints, each of a seed of its own."""
    return DigitsProblem(seeds=(0, 1, 2, 3, 4))


def rows() -> Iterator[dict[str, Any]]:
    """A row a problem and method: score, errors, and how far below the recommended setting, paired."""
    torch.set_num_threads(os.cpu_count() or 1)
    store = str(Path(os.environ.get("DATAWORTH_BENCH") or home() / "bench") / "audit")
    yield from _rows(store, NamedProblem(DIGITS[2]), *DIGITS[:2], DIGITS_METHODS, _digits_by_kronfluence)
    for seed, packages, title, methods in _language_models():
        place = documentation_problem(Path(store) / f"documentation-{seed}", store, seed, packages, title)
        yield from _rows(store, place, *LANGUAGE, methods, _language_by_kronfluence, seed)


def _language_models() -> Iterator[tuple[int, Sequence[str], str, Sequence[str]]]:
    yield 0, PACKAGES, "the demo's language model", LANGUAGE_METHODS
    for seed, packages in FRESH.items():
        yield seed, packages, f"documentation of {', '.join(packages)}, seed {seed}", FRESH_METHODS


def _rows(
    store: str,
    place: ProblemPlace,
    n_subsets: int,
    n_seeds: int,
    methods: Sequence[str],
    theirs: Callable[[Model, Problem], np.ndarray],
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    problem = place.opened()
    start = time.perf_counter()
    masks = random_subsets(problem.examples.n_documents, n_subsets, 0.5, seed)
    outcomes = Outcomes(store, place, range(n_seeds), ClusterConfig()).measured(masks)
    spent = round(time.perf_counter() - start)
    reached = ceiling(outcomes)
    about = {"problem": problem.title, "subsets": n_subsets, "seeds": n_seeds, "queries": outcomes.shape[1]}
    yield {**about, "method": "noise ceiling", **_said(reached), "seconds of trainings now": spent}
    truth, models = outcomes.mean(axis=0), list(problem.models())
    found: dict[str, Agreement] = {}
    for name, scores in _scored(problem, models, methods, theirs):
        start = time.perf_counter()
        each = [lds(predicted(part, masks), truth) for part in scores()]
        found[name] = _mean(each)
        seconds = round((time.perf_counter() - start) / len(each), 1)
        below = difference(found[RECOMMENDED], found[name])
        ends = {
            "below recommended": round(below.mean, 3),
            "low": round(below.mean - REACH * below.standard_error, 3),
            "high": round(below.mean + REACH * below.standard_error, 3),
        }
        yield {**about, "models": len(each), "method": name, **_said(found[name]), **ends, "seconds a model": seconds}


def _scored(
    problem: Problem, models: Sequence[Model], methods: Sequence[str], theirs: Callable[[Model, Problem], np.ndarray]
) -> Iterator[tuple[str, Callable[[], list[np.ndarray]]]]:
    """By method the scores of each model by itself; of all models together where the name says so."""
    settings = _settings(problem)

    def by(name: str, together: Sequence[Sequence[Model]]) -> Callable[[], list[np.ndarray]]:
        return lambda: [
            _of_documents(attributor(name, settings).fit(group, problem.examples).score(problem.queries), problem)
            for group in together
        ]

    yield RECOMMENDED, by(RECOMMENDED, [[model] for model in models])
    yield "kronfluence EK-FAC", lambda: [_of_documents(theirs(model, problem), problem) for model in models]
    for name in methods[1:]:
        yield name, by(name, [[model] for model in models])
    if len(models) > 1:
        for name in (RECOMMENDED, "trak", "ekfac"):
            yield f"{name}, {len(models)} models", by(name, [models])


def _settings(problem: Problem) -> MethodSettings:
    classifies = problem.models()[0].n_classes is not None
    return MethodSettings(
        projection=ProjectionConfig(),
        curvature=CurvatureConfig(labels="exact" if classifies else "sampled"),
        classifies=classifies,
        weight_decay=problem.weight_decay,
        n_examples=problem.examples.n_examples,
        outcome=lambda masks: masks,  # of no method that is run here
        seed=0,
        recipe=problem.recipe if isinstance(problem, ReplayableProblem) else None,
        seeds=ORDERS,
    )


def _of_documents(scores: np.ndarray, problem: Problem) -> np.ndarray:
    found = np.zeros((problem.examples.n_documents, len(scores)))
    np.add.at(found, problem.examples.documents, scores.T)
    return found.T


def _mean(each: Sequence[Agreement]) -> Agreement:
    """Of several checkpoints, held against the same trainings."""
    return Agreement(np.mean([one.by_query for one in each], axis=0), np.mean([one.without for one in each], axis=0))


def _said(agreement: Agreement) -> Mapping[str, Any]:
    return {"LDS": round(agreement.mean, 3), "standard error": round(agreement.standard_error, 3)}


def _digits_by_kronfluence(model: Model, problem: Problem) -> np.ndarray:
    def loss(module: Any, batch: Mapping[str, Any], sample: bool) -> torch.Tensor:
        logits = module(batch["inputs"])
        labels = torch.multinomial(logits.softmax(-1), 1)[:, 0] if sample else batch["labels"]
        return cross_entropy(logits, labels.detach(), reduction="sum")

    with tempfile.TemporaryDirectory() as folder:
        return kronfluence_scores(
            folder, _unwrapped(model), loss, RowDataset(problem.examples), RowDataset(problem.queries),
            batch_size=100, empirical=False,
        )  # fmt: skip


def _language_by_kronfluence(model: Model, problem: Problem) -> np.ndarray:
    def loss(module: Any, batch: Mapping[str, Any], sample: bool) -> torch.Tensor:
        logits, labels = module(input_ids=batch["input_ids"]).logits, batch["labels"]
        if sample:
            drawn = torch.multinomial(logits[:, :-1].detach().flatten(0, 1).softmax(-1), 1).view(len(labels), -1)
            labels = torch.cat([labels[:, :1], torch.where(labels[:, 1:] == -100, -100, drawn)], dim=1)
        return example_losses(logits, labels).sum()

    names = [layer.name for layer in model.layers]
    with tempfile.TemporaryDirectory() as folder:
        return kronfluence_scores(
            folder, _unwrapped(model), loss, _windows(problem.examples), _windows(problem.queries),
            modules=names, empirical=False,
        )  # fmt: skip


def _unwrapped(model: Model) -> Any:
    """A copy: kronfluence changes the modules it tracks."""
    return copy.deepcopy(model.model)


def _windows(examples: Examples) -> WindowDataset:
    found = []
    for number in range(examples.n_examples):
        inputs, _, labels = examples.batch(np.array([number]), torch.device("cpu"), 0)
        found.append((inputs[0], labels[0]))
    return WindowDataset(found)
