"""What the audit measures in memory is what `value` runs over stores: the same scores, whatever the settings."""

import pytest

from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.attribution.logra import LoGra
from dataworth.tasks.corpus.examples import CorpusExamples
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.projection.config import ProjectionConfig
from tests.harness.pipeline import Pipeline, assert_same_scores, document_scores, in_nats, matrix_by_id

PROJECTIONS = {
    "random": {"kind": "random", "rank": 4},
    "pca": {"kind": "pca", "rank": 4},
    "mask": {"kind": "mask", "rank": 4},
    "factgrass": {"kind": "factgrass", "rank": 4},
    "identity": {"kind": "identity"},
}
CURVATURES = ("none", "fisher", "kfac", "ekfac")


SETTINGS = [
    (projection, curvature)
    for projection in PROJECTIONS
    for curvature in CURVATURES
    if projection != "factgrass" or curvature in ("none", "fisher")  # whose two sides are sketched together
]


@pytest.fixture
def few_columns(monkeypatch):
    """Every layer is too wide for a dense Fisher, which is then of low rank."""
    monkeypatch.setattr("dataworth.tasks.curvature.fitting.MAX_COLUMNS", 8)


@pytest.mark.parametrize(("projection", "curvature"), SETTINGS)
def test_both_give_the_same_scores(tmp_path, checkpoints, corpus_file, queries_file, projection, curvature):
    _compare(tmp_path, checkpoints, corpus_file, queries_file, projection, curvature)


def test_both_give_the_same_scores_of_wide_layers(tmp_path, checkpoints, corpus_file, queries_file, few_columns):
    _compare(tmp_path, checkpoints, corpus_file, queries_file, "random", "fisher")


def _compare(tmp_path, checkpoints, corpus_file, queries_file, projection, curvature):
    config = CurvatureConfig(kind=curvature, fraction=1.0)
    pipeline = Pipeline(
        tmp_path / "store", checkpoints["gpt2"], corpus_file, queries_file, dict(PROJECTIONS[projection]), config
    )
    loaded = load(pipeline.model)
    examples, queries = (CorpusExamples(CorpusStore.open(ref)) for ref in (pipeline.corpus, pipeline.queries))
    method = LoGra(ProjectionConfig(**PROJECTIONS[projection]), config)
    in_memory = method.fit([loaded], examples).score(queries)
    found = matrix_by_id(pipeline.scores(), queries.n_examples)
    # By a curvature, those of a store are in nats of the query's loss: each window is one of n that were trained on.
    expected = in_memory if curvature == "none" else in_nats(pipeline, in_memory)
    assert_same_scores(found, document_scores(pipeline, expected))
