"""A real valuation published: its figures, the losses of its queries, and what a second run leaves of a first."""

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from storage.corpus import CorpusStore
from storage.gradients import GradientStore
from storage.scores import ScoreStore
from tasks.coalitions.config import SourcesConfig
from tasks.coalitions.task import value_sources
from tasks.curvature.config import CurvatureConfig
from tasks.report.losses import query_losses
from tasks.report.task import publish_valuation
from tasks.report.valuation import ValuationParts
from tests.reference.pipeline import Pipeline, matrix_by_id, tokens_of


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
        values=value_sources.fn(run.store, scores, SourcesConfig()),
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
    publish_valuation.fn(str(out), parts, 0.95)
    first = {path.name: path.read_bytes() for path in (out / "figures").iterdir()}
    assert first.keys() == {"shares.png", "values.png", "scores.png"}
    (out / "figures" / "overlap.png").write_bytes(b"of an earlier run")
    publish_valuation.fn(str(out), parts, 0.95)
    assert {path.name: path.read_bytes() for path in (out / "figures").iterdir()} == first
    page = (out / "report.html").read_text()
    assert "nats per token over" in page
    assert "dataworth value --model m</pre>" in page
    assert set(pd.read_parquet(out / "sources.parquet")["source"]) == {"s0", "s1", "s2"}


def test_total_scores_are_the_last_row_of_the_matrix(run):
    scores = run.scores()
    by_id = matrix_by_id(scores, 3)
    np.testing.assert_array_equal(ScoreStore.open(scores).total_scores, [row[2] for row in by_id.values()])
