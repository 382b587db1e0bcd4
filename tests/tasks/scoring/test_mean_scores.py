"""Scores averaged over checkpoints: the mean of what each gives by itself, kept as one pass is."""

import json

import numpy as np
import pytest

from dataworth.storage.coalitions import CoalitionStore
from dataworth.storage.compaction import compact
from dataworth.storage.errors import InputError, StoreIncompleteError
from dataworth.storage.scores import ScoreStore
from dataworth.storage.withdrawals import Withdrawals
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.steps import average_values, value_sources
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.scoring.averages import mean_blocks
from dataworth.tasks.scoring.config import ScoringConfig
from dataworth.tasks.scoring.ready import Pass
from dataworth.tasks.scoring.steps import average_scores, score_corpus
from tests.harness.pipeline import Pipeline, matrix_by_id
from tests.reference.checkpoints import TEXTS, save_another

QUERIES = ["q0", "q1", "*"]
KIND = {"kind": "random", "rank": 3}


@pytest.fixture(scope="module")
def pair(checkpoints, tmp_path_factory):
    """Two checkpoints on one store, in small shards and chunks; the second's rows are stored in another order."""
    folder = tmp_path_factory.mktemp("pair")
    texts = [*TEXTS, " ".join(TEXTS), TEXTS[0]]
    rows = [
        {"id": f"d{n:02}", "source": f"s{n % 3}", "publisher": "pq"[n % 2], "text": text}
        for n, text in enumerate(texts)
    ]
    asked = [{"id": f"q{n}", "prompt": TEXTS[n][:20], "completion": TEXTS[n][20:40]} for n in (0, 1)]
    for name, some in (("part", rows[5:9]), ("corpus", rows), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in some))
    other = save_another(checkpoints["llama"], folder / "other")

    def pipeline(checkpoint, corpus):
        files = (folder / f"{corpus}.jsonl", folder / "queries.jsonl")
        curvature = CurvatureConfig(draws=2)
        return Pipeline(folder / "store", checkpoint, *files, dict(KIND), curvature, fields=["publisher"])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dataworth.storage.gradients.rows_per_shard", lambda n_columns, itemsize: 5)
        patched.setattr("dataworth.storage.scores.COLUMNS_PER_CHUNK", 4)
        pipeline(other, "part")
        yield pipeline(checkpoints["llama"], "corpus"), pipeline(other, "corpus")


def averaged(pair, grouping="source", pass_scoring=None, **scoring):
    first = pair[0]
    passes = [
        Pass(
            gradients=each.gradients,
            query_gradients=each.query_gradients,
            curvature=each.curvature,
            scores=each.scores(**(scoring if pass_scoring is None else pass_scoring)),
        )
        for each in pair
    ]
    kept = ScoringConfig(**{"save_matrix": True, **scoring})
    damping = first.curvature_config.damping
    return average_scores(first.store, first.corpus, first.queries, passes, damping, kept, grouping)


def mean_by_id(pair, **scoring):
    one, two = (matrix_by_id(each.scores(**scoring), 3) for each in pair)
    assert list(one) != list(two)  # in another order
    return {name: np.mean([one[name], two[name]], axis=0, dtype=np.float64) for name in one}


@pytest.mark.parametrize("kind", ["dot", "relative", "cosine"])
def test_everything_kept_is_of_the_mean(pair, kind):
    expected = mean_by_id(pair, kind=kind)
    ref = averaged(pair, kind=kind, top_k=4)
    store = ScoreStore.open(ref)
    found = matrix_by_id(ref, 3)
    assert found.keys() == expected.keys()
    for name, scores in expected.items():
        np.testing.assert_array_equal(found[name], scores.astype(np.float32))
    passages = store.passages.to_pandas()
    for number, query in enumerate(QUERIES):
        own = passages[passages["query_id"] == query]
        for sign in (1, -1):
            order = sorted(expected, key=lambda name: (-sign * expected[name][number], name))[:4]
            kept = own[own["rank"] * sign > 0]
            assert kept["document_id"].tolist() == order
            assert kept["rank"].tolist() == [sign * place for place in (1, 2, 3, 4)]
            np.testing.assert_allclose(kept["score"], [expected[name][number] for name in order], rtol=1e-12)
    sums = store.source_sums.to_pandas()
    singles = [ScoreStore.open(each.scores(kind=kind)).source_sums.to_pandas()["sum"] for each in pair]
    np.testing.assert_allclose(sums["sum"], np.mean(singles, axis=0), rtol=1e-6)
    assert averaged(pair, kind=kind, top_k=4) == ref


def test_passages_are_the_first_checkpoints_and_their_other_scores_are_means(pair):
    ref = averaged(pair, top_k=12, by_layer=True)
    one, two = (ScoreStore.open(each.scores(top_k=12, by_layer=True)) for each in pair)
    key = ["query_id", "document_id"]

    def best(store):
        passages = store.passages.to_pandas()
        return passages[passages["rank"] > 0].set_index(key).sort_index()

    mean, first, second = best(ScoreStore.open(ref)), best(one), best(two)
    assert mean["window_start"].tolist() == first["window_start"].tolist()
    assert mean["text"].tolist() == first["text"].tolist()
    np.testing.assert_allclose(mean["relative_score"], (first["relative_score"] + second["relative_score"]) / 2)

    def by_layer(store):
        parts = store.layer_scores.to_pandas()
        return parts[parts["rank"] > 0].set_index([*key, "layer"])["score"].sort_index()

    parts = by_layer(ScoreStore.open(ref))
    np.testing.assert_allclose(parts, (by_layer(one) + by_layer(two)) / 2)
    together = parts.groupby(level=key).sum()
    np.testing.assert_allclose(together, mean["score"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("save_matrix", [True, False])
def test_the_mean_keeps_its_matrix_only_where_it_is_asked_for(pair, save_matrix):
    ref = averaged(pair, pass_scoring={}, save_matrix=save_matrix)
    assert (ScoreStore.open(ref).matrix_path is not None) == save_matrix


def test_values_of_the_mean_are_the_means_of_the_values(pair):
    """By the sums of the mean scores and by the mean of the values; the error is that of two checkpoints."""
    first, sources = pair[0], SourcesConfig()
    scores = averaged(pair)
    singles = [value_sources(first.store, each.scores(), sources) for each in pair]
    ref = average_values(first.store, singles, 0.95, "checkpoint", scores)
    found = CoalitionStore.open(ref)
    table = found.values.to_pandas()
    one, two = (CoalitionStore.open(each).values.to_pandas() for each in singles)
    np.testing.assert_allclose(table["value"], (one["value"] + two["value"]) / 2, rtol=1e-12)
    by_sums = CoalitionStore.open(value_sources(first.store, scores, sources)).values.to_pandas()
    np.testing.assert_allclose(table["value"], by_sums["value"], rtol=1e-6)
    np.testing.assert_allclose(table["error_checkpoint"], np.abs(one["value"] - two["value"]) / 2)
    documents = np.sqrt((one["error_documents"] ** 2 + two["error_documents"] ** 2) / 2)
    np.testing.assert_allclose(table["standard_error"], np.hypot(documents, table["error_checkpoint"]))
    assert (table["low"] < table["value"]).all()
    assert table["error_projection"].isna().all()
    assert found.attributes["scores"] == scores.fingerprint
    assert found.attributes["notes"] == {"checkpoints": 2, "errors": "of documents; of the checkpoint, by 2 of them"}


def test_another_grouping_is_tallied_from_the_same_matrices(pair):
    grouping = "publisher>source"
    found = ScoreStore.open(averaged(pair, grouping, pass_scoring={}, top_k=1, save_matrix=False)).source_sums
    singles = [ScoreStore.open(each.scores(grouping=grouping)).source_sums.to_pandas() for each in pair]
    assert found["source"].to_pylist() == singles[0]["source"].to_list()
    np.testing.assert_allclose(found["sum"], np.mean([each["sum"] for each in singles], axis=0), rtol=1e-6)


def test_a_pass_without_a_matrix_is_refused(pair):
    first = pair[0]
    bare = [
        score_corpus(
            each.store,
            each.corpus,
            each.gradients,
            each.queries,
            each.query_gradients,
            each.curvature,
            each.curvature_config.damping,
            ScoringConfig(),
            ClusterConfig(workers=1),
        )
        for each in pair
    ]
    passes = [
        Pass(gradients=e.gradients, query_gradients=e.query_gradients, curvature=e.curvature, scores=ref)
        for e, ref in zip(pair, bare, strict=True)
    ]
    damping = first.curvature_config.damping
    with pytest.raises(StoreIncompleteError, match="was made without --scoring.save_matrix"):
        average_scores(first.store, first.corpus, first.queries, passes, damping, ScoringConfig())


def test_parts_of_other_layers_are_refused(tmp_path, checkpoints, corpus_file, queries_file):
    pipelines = [
        Pipeline(tmp_path, checkpoints[name], corpus_file, queries_file, dict(KIND), CurvatureConfig(kind="none"))
        for name in ("llama", "gpt2")
    ]
    with pytest.raises(InputError, match="--scoring.by_layer: the checkpoints have other layers"):
        averaged(pipelines, by_layer=True, pass_scoring={})
    assert set(matrix_by_id(averaged(pipelines), 3)) == set(matrix_by_id(pipelines[0].scores(), 3))


def test_means_go_with_what_was_withdrawn(tmp_path, checkpoints, corpus_file, queries_file):
    """Two ways to score stand for two checkpoints."""
    curvature = CurvatureConfig(kind="none")
    run = Pipeline(tmp_path, checkpoints["llama"], corpus_file, queries_file, dict(KIND), curvature)
    refs = [run.scores(kind=kind) for kind in ("dot", "cosine")]
    passes = [
        Pass(gradients=run.gradients, query_gradients=run.query_gradients, curvature=None, scores=ref) for ref in refs
    ]
    damping = run.curvature_config.damping
    scores = average_scores(run.store, run.corpus, run.queries, passes, damping, ScoringConfig())
    singles = [value_sources(run.store, ref, SourcesConfig()) for ref in refs]
    values = average_values(run.store, singles, 0.95, "checkpoint", scores)
    Withdrawals(run.store).add(["s1"], [])
    compact(run.store)
    assert not scores.path.is_dir()
    assert not values.path.is_dir()


class Held:
    """A matrix in memory that counts how much of it is asked for at once."""

    def __init__(self, scores, ids, step):
        self.scores, self.document_ids, self.columns_per_chunk, self.widest = scores, ids, step, 0

    def columns(self, numbers):
        self.widest = max(self.widest, len(numbers))
        return self.scores[:, numbers]


@pytest.mark.parametrize("n", [0, 1, 7])
@pytest.mark.parametrize("n_matrices", [1, 3])
def test_the_mean_is_streamed(n, n_matrices):
    generator = np.random.default_rng(n)
    ids = [f"d{number}" for number in range(n)]
    orders = [generator.permutation(n) for _ in range(n_matrices)]
    whole = generator.normal(size=(n_matrices, 2, n)).astype(np.float32)
    held = [
        Held(scores[:, order], [ids[number] for number in order], 3)
        for scores, order in zip(whole, orders, strict=True)
    ]
    blocks = list(mean_blocks(held))
    assert [name for _, names in blocks for name in names] == [ids[number] for number in orders[0]]
    assert all(block.shape[1] <= 3 for block, _ in blocks)
    assert all(each.widest <= 3 for each in held)
    if n:
        found = np.concatenate([block for block, _ in blocks], axis=1)
        np.testing.assert_allclose(found, whole.astype(np.float64).mean(axis=0)[:, orders[0]], rtol=1e-12)
        weights = generator.uniform(0.1, 3.0, n_matrices).tolist()
        found = np.concatenate([block for block, _ in mean_blocks(held, weights)], axis=1)
        expected = np.average(whole.astype(np.float64), axis=0, weights=weights)[:, orders[0]]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_matrices_of_other_documents_have_no_mean():
    one, two = Held(np.zeros((1, 2)), ["a", "b"], 4), Held(np.zeros((1, 2)), ["a", "c"], 4)
    with pytest.raises(ValueError, match="not of the same documents"):
        list(mean_blocks([one, two]))
