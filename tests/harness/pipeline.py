"""The tasks' bodies run one after another, and what is needed to compare their scores with dense ones."""

import numpy as np
import torch
import zarr

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.layers import LayerStore
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.steps import prepare_corpus, prepare_queries
from dataworth.tasks.curvature.steps import fit_covariances, fit_matrices
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.gradients.directions import make_directions
from dataworth.tasks.gradients.steps import index_gradients
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.steps import make_bases
from dataworth.tasks.scoring.config import ScoringConfig
from dataworth.tasks.scoring.steps import score_corpus

__all__ = ["MAX_LENGTH", "PRECISE", "Pipeline", "assert_same_scores", "document_scores", "matrix_by_id", "tokens_of"]

PRECISE = GradientsConfig(dtype="float32", batch_tokens=96)
MAX_LENGTH = 24


class Pipeline:
    """Runs the tasks' bodies one after another and keeps what they return."""

    def __init__(
        self, store, checkpoint, corpus_file, queries_file, projection, curvature, gradients=PRECISE, fields=()
    ):
        of_model = {name: projection.pop(name) for name in ("exclude", "parameters") if name in projection}
        self.store, self.model = str(store), ModelConfig(name=str(checkpoint), **of_model)
        corpus_config = CorpusConfig(files=[str(corpus_file)], max_length=MAX_LENGTH, fields=list(fields))
        self.curvature_config = curvature
        self.corpus = prepare_corpus(self.store, self.model, corpus_config)
        self.queries = prepare_queries(self.store, self.model, QueriesConfig(file=str(queries_file)))
        self.covariances = None
        factored = projection["kind"] == "identity" and curvature.kind in ("kfac", "ekfac")
        if projection["kind"] == "pca" or factored:
            of_bases = ProjectionConfig(**projection)
            tokens = gradients.batch_tokens
            self.covariances = fit_covariances(self.store, self.model, self.corpus, curvature, tokens, of_bases)
        self.bases = make_bases(self.store, self.model, ProjectionConfig(**projection), self.covariances)
        self.curvature = None
        if curvature.kind != "none":
            self.curvature = fit_matrices(
                self.store,
                self.model,
                self.corpus,
                self.bases,
                self.covariances,
                curvature,
                gradients.batch_tokens,
            )
        self.gradients = self.indexed(self.corpus, gradients)
        self.query_gradients = self.indexed(self.queries, PRECISE)

    def indexed(self, corpus, gradients):
        return index_gradients(self.store, self.model, corpus, self.bases, gradients, "test")

    def keep_nothing(self, error=0.0):
        """From here on rows are scores for the queries, in whose directions they are taken; returns those."""
        gradients = self.kept = PRECISE.model_copy(update={"keep": "none", "query_error": error})
        damping = self.curvature_config.damping
        self.bases = make_directions(
            self.store, self.model, self.queries, self.bases, self.curvature, damping, gradients
        )
        self.gradients = self.indexed(self.corpus, gradients)
        self.query_gradients = self.indexed(self.queries, gradients)
        return LayerStore.open(self.bases)

    def scores(self, workers=1, grouping="source", **scoring):
        return score_corpus(
            self.store,
            self.corpus,
            self.gradients,
            self.queries,
            self.query_gradients,
            self.curvature,
            self.curvature_config.damping,
            ScoringConfig(save_matrix=True, **scoring),
            ClusterConfig(workers=workers),
            grouping,
        )


def matrix_by_id(scores, n_queries):
    group = zarr.open_group(ScoreStore.open(scores).matrix_path.array_store(), mode="r")
    ids = group["document_id"][...].tolist()
    return dict(zip(ids, group["scores"][...][:n_queries].T, strict=True))


def tokens_of(corpus):
    """(input_ids, labels) of every window of a corpus."""
    store, pairs = CorpusStore.open(corpus), []
    for window in range(store.n_examples):
        ids = torch.from_numpy(store.tokens(window).astype(np.int64))
        labels = ids.clone()
        labels[: store.windows["n_masked"][window]] = -100
        pairs.append((ids, labels))
    return pairs


def in_nats(pipeline, scores):
    """What stores hold of influence: one of n training windows each."""
    return scores / CorpusStore.open(pipeline.corpus).n_examples


def document_scores(pipeline, window_scores):
    corpus = CorpusStore.open(pipeline.corpus)
    first, ids = corpus.first_windows, corpus.column("document_id").to_pylist()
    return {name: window_scores[:, first[n] : first[n + 1]].sum(axis=1) for n, name in enumerate(ids)}


def assert_same_scores(found, expected):
    assert found.keys() == expected.keys()
    names = sorted(expected)
    f, e = np.stack([found[name] for name in names]), np.stack([expected[name] for name in names])
    assert np.linalg.norm(e) > 0
    assert np.linalg.norm(f - e) <= 1e-4 * np.linalg.norm(e)
    assert np.abs(f - e).max() <= 1e-4 * np.abs(e).max()
