"""A real model tuned on invented facts: what each source is worth, measured by trainings and said by every estimate.

What was trained is kept in tests/bench/trainings/facts.json, and models and stores in $DATAWORTH_BENCH (default:
~/.dataworth/bench): a stopped bench goes on there. The checkpoint is that of $DATAWORTH_REAL_MODEL, or is made.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dataworth
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.locations import home
from dataworth.tasks.attribution.baselines import bm25_scores, source_sums
from dataworth.tasks.coalitions.valuation import shares
from dataworth.tasks.model.loading import load
from dataworth.tasks.training.retraining import as_it_was
from dataworth.tasks.training.training_with_ledger import ledger_of
from tests.reference.smollm import smollm
from tests.reference.tuned_facts import MASKS, SETTINGS, SOURCES, TunedFacts, named, shapley_estimate

__all__ = ["rows"]

SEEDS = range(2)
# Options of what a checkpoint tells, alone or with its base (of the whole model: adapters name theirs).
ESTIMATES: dict[str, dict[str, Any]] = {
    "default": {},
    "default, with the base": {},
    "EK-FAC, rank 16": {"curvature": {"kind": "ekfac"}},
    "PCA rank 64, EK-FAC": {"projection": {"kind": "pca", "rank": 64}, "curvature": {"kind": "ekfac"}},
}
# From the base on: what the training of everybody took off, step by step (of the whole model: adapters have no base).
LEDGER, LEDGER_EVERY = "ledger", 4


def rows() -> Iterator[dict[str, Any]]:
    """By setting: the sources as measured; then every estimate against that, by seed."""
    torch.set_num_threads(os.cpu_count() or 1)
    folder = Path(os.environ.get("DATAWORTH_BENCH") or home() / "bench") / "facts"
    checkpoint = smollm(folder / "SmolLM2-135M-Instruct")
    for setting in SETTINGS:
        problems = [TunedFacts(folder, checkpoint, setting, seed) for seed in SEEDS]
        measured = [{named(mask): -each.losses(mask) for mask in MASKS} for each in problems]
        yield from measured_rows(setting, measured, problems[0])
        mean = {name: np.mean([each[name] for each in measured], axis=0) for name in measured[0]}
        for name, values in _estimated(problems[0], mean).items():
            yield {"setting": setting, "estimate": name} | against(values, measured)
        for name, scores in _scored(problems[0]).items():
            yield {"setting": setting, "scores": name} | witnesses(scores, problems[0])


def measured_rows(setting: str, measured: list[dict[str, np.ndarray]], problem: TunedFacts) -> Iterator[dict[str, Any]]:
    """What training took off the questions, and each source's part of it: nats a question, mean over seeds."""
    everybody, nobody = (
        np.mean([each[digit * len(SOURCES)] for each in measured], axis=0).mean() for digit in ("1", "0")
    )
    yield {
        "setting": setting,
        "base": round(-nobody, 2),
        "model": round(-everybody, 2),
        "total": round(everybody - nobody, 2),
    }
    by_seed = np.array([shapley_estimate(each).mean(axis=1) for each in measured])
    mean = {name: np.mean([each[name] for each in measured], axis=0).mean() for name in measured[0]}
    documents = problem.facts.documents
    tokens = source_tokens(problem)
    for number, source in enumerate(SOURCES):
        only = "".join("1" if n == number else "0" for n in range(len(SOURCES)))
        without = "".join("0" if n == number else "1" for n in range(len(SOURCES)))
        yield {
            "setting": setting,
            "source": source,
            "documents": sum(row["source"] == source for row in documents),
            "tokens": int(tokens[number]),
            "leave-one-out": round(everybody - mean[without], 2),
            "alone": round(mean[only] - nobody, 2),
            "shapley": round(by_seed[:, number].mean(), 2),
            "between seeds": round(float(by_seed[:, number].std(ddof=1)), 2) if len(by_seed) > 1 else None,
            "share": round(float(shares(by_seed.mean(axis=0)[None])[0][number]), 3),
        }


def source_tokens(problem: TunedFacts) -> np.ndarray:
    """(s,) of each source."""
    tokens, of = (np.array(problem.corpus.column(name).to_pylist()) for name in ("n_tokens", "source"))
    return np.array([tokens[of == source].sum() for source in SOURCES], np.float64)


def against(values: np.ndarray, measured: list[dict[str, np.ndarray]]) -> dict[str, float | None]:
    """Share error and rank correlation of (s,) or (s, q) values, and the share error of one seed to the other."""
    from scipy.stats import spearmanr

    by_seed = np.array([shapley_estimate(each).mean(axis=1) for each in measured])
    truth = by_seed.mean(axis=0)
    together = values if values.ndim == 1 else values.mean(axis=1)
    row = {
        "share error": share_error(together, truth),
        "spearman": round(float(spearmanr(together, truth).statistic), 2) if np.ptp(together) else None,
        # Two seeds: half of their distance is what their mean is off by, in expectation; of one nobody knows.
        "floor": round(share_error(by_seed[0], by_seed[-1], 6) / 2, 3) if len(by_seed) > 1 else None,
    }
    if values.ndim == 2:
        of_queries = np.mean([shapley_estimate(each) for each in measured], axis=0)
        row["share error by question"] = round(
            float(np.nanmean([share_error(one, two, 6) for one, two in zip(values.T, of_queries.T, strict=True)])), 3
        )
    return row


def share_error(one: np.ndarray, two: np.ndarray, digits: int = 3) -> float:
    """Total variation of positive shares; of nobody's, that of equal parts."""
    parts = [np.nan_to_num(shares(each[None])[0], nan=1 / len(each)) for each in (one, two)]
    return round(float(np.abs(parts[0] - parts[1]).sum() / 2), digits)


def _estimated(problem: TunedFacts, mean: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(s, q) by estimate, (s,) where it is the same for every question."""
    n = len(SOURCES)
    everybody, nobody = mean["1" * n], mean["0" * n]
    last = np.array([everybody - mean["".join("0" if k == i else "1" for k in range(n))] for i in range(n)])
    first = np.array([mean["".join("1" if k == i else "0" for k in range(n))] - nobody for i in range(n)])
    found = {
        "tokens": source_tokens(problem),
        "equal parts": np.ones(n),
        "BM25": source_sums(_bm25(problem), [row["source"] for row in problem.facts.documents], SOURCES).T,
        "leave-one-out, measured": last,
        "alone, measured": first,
        "mean of both": (last + first) / 2,
    }
    if problem.setting == "whole":
        found[LEDGER] = _ledger(problem)
    for name, valuation in _valuations(problem).items():
        table = valuation.sources
        table = table[table["query_id"] != "*"].pivot(index="source", columns="query_id", values="value")
        found[name] = table.loc[list(SOURCES), [row["id"] for row in problem.facts.queries]].to_numpy()
    return found


def _ledger(problem: TunedFacts) -> np.ndarray:
    """(s, q) of one more training."""
    base = load(problem.base)
    queries = CorpusStore.open(problem.queries)
    of = np.array([SOURCES.index(name) for name in problem.corpus.column("source").to_pylist()])
    owners = of[problem.corpus.windows["document"]]
    with as_it_was(base):
        made = ledger_of(
            base, problem.corpus, np.arange(len(owners)), owners, len(SOURCES), queries, problem.training, LEDGER_EVERY
        )
    return made.values


def _bm25(problem: TunedFacts) -> np.ndarray:
    texts = [row["text"] for row in problem.facts.documents]
    return bm25_scores(texts, [row["prompt"] + row["completion"] for row in problem.facts.queries])


def _valuations(problem: TunedFacts) -> dict[str, Any]:
    model, shared = str(problem.checkpoint()), {"scoring": {"save_matrix": True}, "corpus": {"max_length": 128}}
    files = str(problem.corpus_file), str(problem.queries_file)
    with_base = {"model": {"base": problem.base.name}, "sources": {"game": "additive"}}
    return {
        name: dataworth.value(
            model, None, *files, store=problem.store, **shared, **options, **(with_base if "base" in name else {})
        )
        for name, options in ESTIMATES.items()
    }


def _scored(problem: TunedFacts) -> dict[str, np.ndarray]:
    ids = [row["id"] for row in problem.facts.documents]
    found = {"BM25": _bm25(problem)}
    for name, valuation in _valuations(problem).items():
        table = valuation.scores.to_pandas()
        found[name] = table.loc[[row["id"] for row in problem.facts.queries], ids].to_numpy()
    return found


def witnesses(scores: np.ndarray, problem: TunedFacts) -> dict[str, float]:
    """Parts of the questions: a document that states the fact is first; both of the almanac's are the first two."""
    ids = [row["id"] for row in problem.facts.documents]
    first, both = [], []
    for query, row in zip(problem.facts.queries, scores, strict=True):
        best = [ids[number] for number in np.argsort(-row, kind="stable")[:2]]
        stating = problem.facts.witnesses[query["id"]]
        first.append(best[0] in stating)
        both.append(all(each in stating for each in best))
    return {"a witness first": round(float(np.mean(first)), 2), "witnesses both": round(float(np.mean(both)), 2)}
