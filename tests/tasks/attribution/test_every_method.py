"""What every method has to keep to, on a checkpoint and a corpus as users have them, in float32."""

import numpy as np
import pytest

from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.attribution.arnoldi import ArnoldiInfluence
from dataworth.tasks.attribution.baselines import EmbeddingSimilarity, RandomScores, TargetCount
from dataworth.tasks.attribution.datainf import DataInf
from dataworth.tasks.attribution.iterative import CGInfluence, LiSSAInfluence
from dataworth.tasks.attribution.logra import LoGra
from dataworth.tasks.attribution.retrained import LeaveOneOut, TruncatedMonteCarloShapley
from dataworth.tasks.attribution.tracin import TracIn
from dataworth.tasks.attribution.trak import TRAK
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.examples import CorpusExamples
from dataworth.tasks.corpus.steps import prepare_corpus, prepare_queries
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.projection.config import ProjectionConfig

QUERIES = 2


def losses(masks):
    """Of the queries, after no training at all."""
    return np.repeat(10.0 - masks.sum(axis=1, keepdims=True), QUERIES, axis=1)


METHODS = [
    ArnoldiInfluence(iterations=4, rank=2),
    CGInfluence(20.0, tolerance=1e-3),
    DataInf(projection=ProjectionConfig(rank=4)),
    EmbeddingSimilarity(),
    LeaveOneOut(losses),
    LiSSAInfluence(20.0, depth=8, tolerance=1.0),
    LoGra(ProjectionConfig(rank=4), CurvatureConfig()),
    RandomScores(),
    TRAK(4, ridge=1e-3),
    TargetCount(),
    TracIn(),
    TruncatedMonteCarloShapley(losses, permutations=2),
]


@pytest.fixture
def loaded(tmp_path, checkpoints, corpus_file, queries_file):
    """A model, its corpus and queries."""
    store, model = str(tmp_path / "store"), ModelConfig(name=str(checkpoints["gpt2"]), include=["*1.mlp.c_proj"])
    corpus = prepare_corpus(store, model, CorpusConfig(files=[str(corpus_file)], max_length=12))
    queries = prepare_queries(store, model, QueriesConfig(file=str(queries_file)))
    return load(model), *(CorpusExamples(CorpusStore.open(ref)) for ref in (corpus, queries))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_scores_of_a_corpus(loaded, method):
    model, examples, queries = loaded
    assert examples.n_examples > examples.n_documents
    assert method.fit([model], examples) is method
    found = method.score(queries)
    assert found.shape == (queries.n_examples, examples.n_examples)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    assert found.any()
