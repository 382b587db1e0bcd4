"""Certificates on real trainings: how many further removals their intervals hold, and what they make of scores.

Two corpora of unequal sources (see tests/reference/unequal.py), a tiny language model tuned on each from a base, many
removals measured; certificates of some of them are held against the others.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import dataworth
from dataworth.storage.locations import home
from dataworth.tasks.counterfactual.certificate import Certificate
from tests.bench.truth import KEPT
from tests.reference.coalition_trainings import BASE, BATCH, SETTINGS, Cell, Problem, Trainings, problem

__all__ = ["rows"]

REMOVALS = 60
SIZES = (10, 20)
REPEATS = 200
SETTING = "fine-tuned"
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "EK-FAC, PCA rank 64": {"projection": {"kind": "pca", "rank": 64}, "curvature": {"kind": "ekfac"}},
}


def rows() -> Iterator[dict[str, Any]]:
    """One row a corpus, estimate and number of removals."""
    folder = Path(os.environ.get("DATAWORTH_BENCH") or home() / "bench")
    for name in ("unequal", "held-out"):
        made = problem(name, Trainings.open(KEPT / f"{name}.npz").corpus, folder)
        for estimate, options in OPTIONS.items():
            certificate = _measured(made, options)
            whole = {"corpus": name, "estimate": estimate}
            yield whole | {key: value for key, value in certificate.facts().items() if key != "verdict"}
            for size in SIZES:
                yield whole | {"certified by": size, **_held(certificate, size)}


def _measured(made: Problem, options: dict[str, Any]) -> Certificate:
    """Of many removals, trained by the flow's own trainer."""
    recipe, n_tokens = SETTINGS[SETTING], sum(map(len, made.rows))
    training = {
        "epochs": recipe.epochs,
        "batch_tokens": round(BATCH * n_tokens / len(made.rows)),
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
    }
    model = made.checkpoint(Cell(SETTING, "epochs", 0))
    valued = dataworth.value(
        str(model),
        None,
        str(made.corpus_file),
        str(made.queries_file),
        store=made.folder / "certified",
        model={"base": str(model / "base"), "device": "cpu"},
        corpus={"max_length": BASE.positions},
        training=training,
        certify=REMOVALS,
        **options,
    )
    if valued.parts.certificate is None:
        raise ValueError("the valuation has no certificate")
    return Certificate.open(valued.parts.certificate)


def _held(whole: Certificate, size: int) -> dict[str, float]:
    """Certificates of some removals, drawn again and again, against the others."""
    generator = np.random.default_rng(0)
    held, of_query, widths, believed = [], [], [], 0
    for _ in range(REPEATS):
        order = generator.permutation(len(whole.predicted))
        some, others = order[:size], order[size:]
        made = Certificate(whole.predicted[some], whole.measured[some], whole.tokens[some])
        missed = whole.measured[others] - made.calibrated(whole.predicted[others], whole.tokens[others, None])
        held.append(np.abs(missed.mean(axis=1)) <= made.within)
        of_query.append(np.abs(missed) <= made.within_query)
        widths.append(made.within)
    for _ in range(REPEATS // 10):
        some = generator.permutation(len(whole.predicted))[:size]
        believed += Certificate(whole.predicted[some], whole.measured[some], whole.tokens[some]).believed
    return {
        "intervals that hold": round(float(np.mean(held)), 3),
        "of one query": round(float(np.mean(of_query)), 3),
        "half width, nats a query": round(float(np.mean(widths)), 3),
        "believed": round(believed / (REPEATS // 10), 2),
    }
