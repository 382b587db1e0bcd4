"""Exact copies of documents, under another source and other ids, are scored and paid exactly as their originals are."""

import json

import numpy as np
import pytest

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.attribution import rows as rows_of_examples
from dataworth.tasks.attribution.logra import LoGra
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.corpus.examples import CorpusExamples, Part
from dataworth.tasks.corpus.steps import prepare_corpus
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.projection.config import ProjectionConfig
from tests.harness.pipeline import Pipeline, matrix_by_id
from tests.reference.checkpoints import TEXTS

# Short ones, and two of several windows that end at different places in the last.
ORIGINALS = [*TEXTS[:4], " ".join(TEXTS), " ".join(TEXTS[2:7])]


@pytest.fixture
def copied_file(tmp_path):
    """Originals, others and copies, in mixed order, the copies of the longest among the shortest."""
    rows = [{"id": f"o{n}", "source": "original", "text": text} for n, text in enumerate(ORIGINALS)]
    rows += [{"id": f"x{n}", "source": "other", "text": text} for n, text in enumerate(TEXTS[4:])]
    rows += [{"id": f"c{n}", "source": "copy", "text": text} for n, text in enumerate(ORIGINALS)]
    order = np.random.default_rng(0).permutation(len(rows))
    path = tmp_path / "copied.jsonl"
    path.write_text("".join(f"{json.dumps(rows[number])}\n" for number in order))
    return path


@pytest.mark.parametrize(("batch_tokens", "dtype"), [(60, "float16"), (4096, "int8")])
def test_stored_scores_are_equal_to_the_bit(tmp_path, checkpoints, copied_file, queries_file, batch_tokens, dtype):
    gradients = GradientsConfig(dtype=dtype, batch_tokens=batch_tokens)
    projection, curvature = {"kind": "random", "rank": 5}, CurvatureConfig(draws=2)
    pipeline = Pipeline(tmp_path, checkpoints["llama"], copied_file, queries_file, projection, curvature, gradients)
    for kind in ("dot", "relative", "cosine"):
        scores = pipeline.scores(kind=kind)
        by_id = matrix_by_id(scores, 2)
        for number in range(len(ORIGINALS)):
            assert np.abs(by_id[f"o{number}"]).min() > 0
            assert np.array_equal(by_id[f"o{number}"], by_id[f"c{number}"])
        paid = ScoreStore.open(scores).source_sums.to_pandas().pivot(index="query_id", columns="source", values="sum")
        np.testing.assert_allclose(paid["copy"], paid["original"], rtol=1e-12)
        assert not np.allclose(paid["other"], paid["original"], rtol=1e-2)


@pytest.mark.parametrize(("batch_tokens", "kind"), [(60, "ekfac"), (4096, "fisher")])
def test_scores_in_memory_hardly_depend_on_what_is_beside(
    tmp_path, checkpoints, copied_file, monkeypatch, batch_tokens, kind
):
    """Here every copy has a pass of its own, in a batch that is padded as its neighbours want."""
    monkeypatch.setattr(rows_of_examples, "BATCH_TOKENS", batch_tokens)
    config = ModelConfig(name=str(checkpoints["llama"]))
    corpus = prepare_corpus(str(tmp_path), config, CorpusConfig(files=[str(copied_file)], max_length=24))
    examples = CorpusExamples(CorpusStore.open(corpus))
    curvature = CurvatureConfig(kind=kind, draws=2)
    method = LoGra(ProjectionConfig(rank=5), curvature).fit([load(config)], examples)
    windows = method.score(Part(examples, np.arange(3)))
    scores = np.zeros((3, examples.n_documents))
    np.add.at(scores.T, examples.documents, windows.T)
    ids = examples.corpus.column("document_id").to_pylist()
    places = {name: number for number, name in enumerate(ids)}
    originals, copies = (scores[:, [places[f"{side}{n}"] for n in range(len(ORIGINALS))]] for side in "oc")
    assert np.abs(originals).min() > 0
    np.testing.assert_allclose(copies, originals, rtol=0, atol=1e-6 * np.abs(originals).max())
