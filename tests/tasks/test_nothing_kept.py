"""Scores on the way, no gradient kept: those that stored gradients give, or what was said is lost of them."""

import json

import numpy as np
import pytest

from dataworth.storage.compaction import compact
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.scores import ScoreStore
from dataworth.storage.withdrawals import Withdrawals
from dataworth.tasks.curvature.config import CurvatureConfig
from tests.harness.pipeline import Pipeline, assert_same_scores, matrix_by_id

SETTINGS = {
    "whole, EK-FAC": ({"kind": "identity"}, "ekfac"),
    "whole, products": ({"kind": "identity"}, "none"),
    "whole, Fisher of low rank": ({"kind": "identity"}, "fisher"),
    "every parameter": ({"kind": "identity", "parameters": "all"}, "kfac"),
    "random": ({"kind": "random", "rank": 4}, "fisher"),
    "pca": ({"kind": "pca", "rank": 4}, "ekfac"),
    "mask": ({"kind": "mask", "rank": 6}, "kfac"),
}
N_QUERIES = 2


def pipeline(folder, checkpoint, corpus_file, queries_file, name="whole, EK-FAC"):
    projection, kind = SETTINGS[name]
    curvature = CurvatureConfig(kind=kind, labels="empirical", low_rank=8)
    return Pipeline(folder, checkpoint, corpus_file, queries_file, dict(projection), curvature)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_scores_of_stored_gradients(tmp_path, checkpoints, corpus_file, queries_file, name):
    run = pipeline(tmp_path, checkpoints["gpt2"], corpus_file, queries_file, name)
    expected = matrix_by_id(run.scores(), N_QUERIES)
    with_rows = ScoreStore.open(run.scores()).source_sums.to_pandas()
    run.keep_nothing()
    store = GradientStore.open(run.gradients)
    assert store.n_columns == N_QUERIES
    assert store.dtype == "float32"
    assert_same_scores(matrix_by_id(run.scores(), N_QUERIES), expected)
    without = ScoreStore.open(run.scores()).source_sums.to_pandas()
    assert without["source"].tolist() == with_rows["source"].tolist()
    largest = with_rows["sum"].abs().max()
    np.testing.assert_allclose(without["sum"], with_rows["sum"], atol=1e-4 * largest)


@pytest.mark.parametrize("name", ["whole, EK-FAC", "every parameter", "pca"])
@pytest.mark.parametrize("error", [0.3, 0.01])
def test_a_cut_loses_what_it_says(tmp_path, checkpoints, corpus_file, queries_file, name, error):
    run = pipeline(tmp_path, checkpoints["llama"], corpus_file, queries_file, name)
    exact = matrix_by_id(run.scores(), N_QUERIES)
    whole = [(layer.k_out, layer.k_in) for layer in GradientStore.open(run.gradients).layers]
    made = run.keep_nothing(error)
    told = np.asarray(made.attributes["errors"])
    assert (told >= 0).all()
    assert told.max() <= error
    if name == "whole, EK-FAC" and error > 0.1:  # what has so few dimensions is told by almost all of them
        assert sum(layer.k_out * layer.k_in for layer in made.layers) < sum(one * other for one, other in whole)
    cut = matrix_by_id(run.scores(), N_QUERIES)
    names = sorted(exact)
    one, other = (np.stack([each[name] for name in names]) for each in (exact, cut))
    lost = np.linalg.norm(other - one, axis=0) / np.linalg.norm(one, axis=0)
    # What is said holds on the mean over gradients that have the curvature's second moments; these have about those.
    assert (lost <= 3 * error).all()


def test_a_corpus_that_grew_is_gone_on_with(tmp_path, checkpoints, corpus_file, queries_file):
    run = pipeline(tmp_path, checkpoints["gpt2"], corpus_file, queries_file)
    run.keep_nothing()
    before = GradientStore.open(run.gradients)
    names = {segment.name for segment in before.segments()}
    documents = CorpusStore.open(run.corpus)
    assert len(before.stored()) == len(np.unique(documents.contents[documents.column("n_windows").to_numpy() > 0]))
    again = run.indexed(run.corpus, run.kept)
    assert again == run.gradients
    assert {segment.name for segment in GradientStore.open(again).segments()} == names


def test_scores_for_other_queries_are_refused(tmp_path, checkpoints, corpus_file, queries_file):
    run = pipeline(tmp_path, checkpoints["gpt2"], corpus_file, queries_file)
    run.keep_nothing()
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "x", "prompt": "one two", "completion": " three"}\n')
    asked = Pipeline(tmp_path, checkpoints["gpt2"], corpus_file, other, {"kind": "identity"}, run.curvature_config)
    run.queries = asked.queries
    with pytest.raises(ValueError, match="for other queries"):
        run.scores()


def test_directions_that_do_not_fit_are_refused(tmp_path, checkpoints, corpus_file, queries_file, monkeypatch):
    run = pipeline(tmp_path, checkpoints["gpt2"], corpus_file, queries_file)

    class Full:
        available = 10

    monkeypatch.setattr("dataworth.tasks.gradients.directions.psutil.virtual_memory", Full)
    with pytest.raises(InputError, match="the directions of 2 queries take"):
        run.keep_nothing()


def test_one_query_among_stronger_ones_loses_no_more(tmp_path, checkpoints, corpus_file, queries_file):
    """Sides are shared: each query counts alike for them, and none may lose more than is allowed."""
    many = tmp_path / "many.jsonl"
    texts = ["one two three four five six seven eight nine ten" * n for n in range(1, 5)]
    rows = [{"id": f"q{n}", "prompt": text[:20], "completion": text[20:60]} for n, text in enumerate(texts)]
    many.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = pipeline(tmp_path, checkpoints["llama"], corpus_file, many)
    errors = run.keep_nothing(0.25).attributes["errors"]
    assert len(errors) == len(rows)
    assert 0 < max(errors) <= 0.25


def test_bases_that_sketch_are_refused(tmp_path, checkpoints, corpus_file, queries_file):
    curvature = CurvatureConfig(kind="fisher", labels="empirical")
    projection = {"kind": "factgrass", "rank": 4}
    run = Pipeline(tmp_path, checkpoints["gpt2"], corpus_file, queries_file, projection, curvature)
    with pytest.raises(InputError, match="sketched together"):
        run.keep_nothing()


def test_few_rows_are_lost_by_a_kill(tmp_path, checkpoints, corpus_file, queries_file):
    run = pipeline(tmp_path, checkpoints["gpt2"], corpus_file, queries_file)
    run.keep_nothing()
    assert GradientStore.open(run.gradients).rows_per_shard <= 128


def test_with_its_corpus_go_scores_under_its_curvature(tmp_path, checkpoints, corpus_file, queries_file):
    run = pipeline(tmp_path, checkpoints["gpt2"], corpus_file, queries_file)
    before = run.gradients
    run.keep_nothing()
    source = CorpusStore.open(run.corpus).column("source")[0].as_py()
    Withdrawals(run.store).add(sources=[source])
    done = compact(run.store)
    gone = {name for removal, _ in done.receipts for name in removal.stores["gradients"]}
    assert gone == {run.gradients.fingerprint, run.query_gradients.fingerprint}
    assert GradientStore.open(before).along is None
