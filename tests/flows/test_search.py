"""A first look: the documents a search finds are those of an exact pass, and nothing is computed that is not needed."""

import json

import numpy as np
import pytest

from dataworth.config import SearchConfig
from dataworth.search import search
from dataworth.storage.errors import InputError
from dataworth.storage.gradients import GradientStore
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.scoring.sketches import best_rows, sketch_matrix
from tests.harness.pipeline import MAX_LENGTH, Pipeline, matrix_by_id
from tests.reference.checkpoints import TEXTS, save_another

pytestmark = pytest.mark.filterwarnings("ignore:.*swig.*", "ignore:.*Swig.*")


@pytest.fixture
def indexed(tmp_path, checkpoints, queries_file, monkeypatch):
    """A store of 120 documents in several shards, and the configuration of a search in it."""
    monkeypatch.setattr("dataworth.storage.gradients.rows_per_shard", lambda n_columns, itemsize: 16)
    words, generator = " ".join(TEXTS).split(), np.random.default_rng(0)
    corpus = tmp_path / "many.jsonl"
    rows = [{"id": f"d{n}", "source": f"s{n % 3}", "text": " ".join(generator.choice(words, 12))} for n in range(120)]
    corpus.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = {"kind": "random", "rank": 4}
    pipeline = Pipeline(
        tmp_path / "store",
        checkpoints["llama"],
        corpus,
        queries_file,
        dict(given),
        CurvatureConfig(draws=2),
        GradientsConfig(),
    )
    config = SearchConfig.model_validate(
        {
            "model": {"name": str(checkpoints["llama"])},
            "corpus": {"files": [str(corpus)], "max_length": MAX_LENGTH},
            "projection": given,
            "curvature": {"draws": 2},
            "store": pipeline.store,
            "query": "The river runs",
            "completion": " down to the sea.",
            "count": 5,
            "sketch": 64,
        }
    )
    return pipeline, config


def test_a_search_finds_what_an_exact_pass_ranks_first(indexed):
    pipeline, config = indexed
    found = search(config)
    exact = {name: scores[0] for name, scores in matrix_by_id(pipeline.scores(), 1).items()}
    best = sorted(exact, key=lambda name: -exact[name])[:5]
    assert found.text == "The river runs down to the sea."
    assert [document["document_id"] for document in found.documents] == best
    for document in found.documents:
        assert document["score"] == pytest.approx(exact[document["document_id"]], rel=1e-3)
    assert [document["rank"] for document in found.documents] == [1, 2, 3, 4, 5]
    segment = GradientStore.open(pipeline.gradients).segments()[0]
    chunk = segment.path / "sketch_64" / "c" / "1" / "0"
    made = chunk.stat().st_mtime_ns
    assert search(config) == found
    assert chunk.stat().st_mtime_ns == made
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    assert search(config) == found  # made again
    assert chunk.read_bytes()[-1:] != b"?"


def test_a_search_with_two_checkpoints_ranks_by_their_mean(indexed, checkpoints, queries_file, tmp_path):
    pipeline, config = indexed
    other = save_another(checkpoints["llama"], tmp_path / "other")
    model = config.model.model_copy(update={"name": [*config.model.name, str(other)]})
    both = config.model_copy(update={"model": model})
    with pytest.raises(InputError, match="120 of 120 documents are not indexed"):
        search(both)
    second = Pipeline(
        tmp_path / "store",
        other,
        tmp_path / "many.jsonl",
        queries_file,
        {"kind": "random", "rank": 4},
        CurvatureConfig(draws=2),
        GradientsConfig(),
    )
    one, two = (matrix_by_id(each.scores(), 1) for each in (pipeline, second))
    mean = {name: (float(one[name][0]) + float(two[name][0])) / 2 for name in one}
    best = sorted(mean, key=lambda name: -mean[name])[:5]
    found = search(both).documents
    assert [document["document_id"] for document in found] == best
    for document in found:
        assert document["score"] == pytest.approx(mean[document["document_id"]], rel=1e-3)


def test_a_corpus_that_is_not_indexed_is_refused(indexed, corpus_file):
    _, config = indexed
    other = config.model_copy(update={"corpus": config.corpus.model_copy(update={"files": [str(corpus_file)]})})
    with pytest.raises(InputError, match="12 of 12 documents are not indexed: run `dataworth index` first"):
        search(other)


@pytest.mark.parametrize("n_columns", [40, 400])
def test_the_sketch_keeps_inner_products_in_expectation(n_columns):
    generator = np.random.default_rng(0)
    one, two = generator.standard_normal((2, n_columns))
    products = [
        float((one @ matrix) @ (two @ matrix))
        for matrix in (sketch_matrix(n_columns, 50, seed) for seed in range(600 if n_columns > 50 else 1))
    ]
    spread = np.std(products) / np.sqrt(len(products))
    assert abs(np.mean(products) - one @ two) <= 4 * spread + 1e-5


def test_the_best_rows_are_numbered_over_all_blocks():
    blocks = [np.eye(3, dtype=np.float16), np.full((2, 3), np.nan, np.float16), 2 * np.eye(3, dtype=np.float16)]
    query = np.array([1.0, 0.4, 0.1], np.float32)
    assert best_rows(iter(blocks), query, 3).tolist() == [5, 0, 6]
    assert best_rows(iter(blocks[1:2]), query, 3).tolist() == []
    assert len(best_rows(iter(blocks), query, 100)) == 6
