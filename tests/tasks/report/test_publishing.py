"""A real valuation published: its figures, the losses of its queries, and what a second run leaves of a first."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.gradients import GradientStore
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.steps import value_sources
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.report.results.query_losses import QueryLoss, mean_losses, query_losses
from dataworth.tasks.report.results.valuation import CheckpointParts, ValuationParts
from dataworth.tasks.report.steps import publish_valuation
from tests.harness.pipeline import Pipeline, matrix_by_id, tokens_of


@pytest.fixture
def run(tmp_path, checkpoints, corpus_file, queries_file):
    return Pipeline(
        tmp_path / "store", checkpoints["llama"], corpus_file, queries_file, {"kind": "random", "rank": 3},
        CurvatureConfig(draws=2),
    )  # fmt: skip


def parts_of(run):
    scores = run.scores()
    return ValuationParts(
        title="t",
        parameters={"sources": {"game": "additive"}},
        corpus=run.corpus,
        queries=run.queries,
        gradients=run.gradients,
        curvature=run.curvature,
        scores=scores,
        values=value_sources(run.store, scores, SourcesConfig()),
        model_name="m",
        model_fingerprint="f",
        query_gradients=run.query_gradients,
        command="cd /x\ndataworth value --model m",
        timings={"score": 1.0},
        prefect_run="p",
        prefect_url=None,
    )


def test_losses_are_those_of_the_model_per_token(run, checkpoints):
    queries = CorpusStore.open(run.queries)
    found = query_losses(queries, GradientStore.open(run.query_gradients))
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"], dtype=torch.float64).eval()
    assert list(found) == ["q0", "q1"]
    for loss, (ids, labels) in zip(found.values(), tokens_of(run.queries), strict=True):
        with torch.no_grad():
            mean = model(input_ids=ids[None], labels=labels[None]).loss
        assert loss.n_targets == int((labels[1:] != -100).sum())
        assert loss.per_target == pytest.approx(float(mean), rel=1e-4)
        assert not loss.of_class


def test_figures_are_published_and_old_ones_removed(run, tmp_path):
    parts, out = parts_of(run), tmp_path / "out"
    publish_valuation(str(out), parts, 0.95)
    first = {path.name: path.read_bytes() for path in (out / "figures").iterdir()}
    assert first.keys() == {"shares.png", "values.png", "scores.png"}
    (out / "figures" / "overlap.png").write_bytes(b"of an earlier run")
    publish_valuation(str(out), parts, 0.95)
    assert {path.name: path.read_bytes() for path in (out / "figures").iterdir()} == first
    page = (out / "report.html").read_text()
    assert "nats per token over" in page
    assert "dataworth value --model m</pre>" in page
    assert set(pd.read_parquet(out / "sources.parquet")["source"]) == {"s0", "s1", "s2"}


def test_total_scores_are_the_last_row_of_the_matrix(run):
    scores = run.scores()
    by_id = matrix_by_id(scores, 3)
    np.testing.assert_array_equal(ScoreStore.open(scores).total_scores, [row[2] for row in by_id.values()])


def test_losses_of_checkpoints_are_averaged():
    one, two = {"q": QueryLoss(6.0, 4, False)}, {"q": QueryLoss(2.0, 4, False)}
    assert mean_losses([one]) == one
    assert mean_losses([one, two]) == {"q": QueryLoss(4.0, 4, False)}


def test_each_checkpoint_is_recorded(run, tmp_path):
    parts, out = parts_of(run), tmp_path / "out"
    own = {name: getattr(parts, name) for name in ("gradients", "query_gradients", "curvature", "scores", "values")}
    several = (
        CheckpointParts(model_name="m/1", model_fingerprint="f1", **own),
        CheckpointParts(model_name="m/2", model_fingerprint="f2", **{**own, "curvature": None}),
    )
    publish_valuation(str(out), parts.model_copy(update={"checkpoints": several}), 0.95)
    made = json.loads((out / "valuation.json").read_text())
    assert [(each["model"], each["fingerprints"]["model"]) for each in made["checkpoints"]] == [
        ("m/1", "f1"),
        ("m/2", "f2"),
    ]
    assert made["fingerprints"]["gradients"] == ", ".join([run.gradients.fingerprint] * 2)
    assert made["checkpoints"][0]["stores"]["curvature"] == run.curvature.location
    assert "curvature" not in made["checkpoints"][1]["stores"]
    assert "m/1 (f1), m/2 (f2)" in (out / "report.html").read_text()
