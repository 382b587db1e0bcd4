"""From documents to scores through the tasks' bodies, against a dense, autograd-only computation."""

import numpy as np
import pytest
import torch
import zarr
from transformers import AutoModelForCausalLM

from storage.corpus import CorpusStore
from storage.errors import InputError, StoreIncompleteError
from storage.gradients import GradientStore
from storage.layers import LayerStore
from storage.scores import ScoreStore
from tasks.capture.losses import sampled_labels
from tasks.coalitions.config import SourcesConfig
from tasks.coalitions.task import value_sources
from tasks.corpus.batches import batches_by_length, corpus_batch
from tasks.corpus.config import CorpusConfig, QueriesConfig
from tasks.corpus.task import prepare_corpus, prepare_queries
from tasks.curvature.config import CurvatureConfig, DampingConfig
from tasks.curvature.task import fit_fisher
from tasks.gradients.config import GradientsConfig
from tasks.gradients.task import index_gradients
from tasks.model.config import ModelConfig
from tasks.model.layers import tracked_layers
from tasks.projection.config import ProjectionConfig
from tasks.projection.logra import stored_projections
from tasks.projection.task import make_bases
from tasks.scoring.config import ClusterConfig, ScoringConfig
from tasks.scoring.task import score_corpus
from tests.reference.dense import dense_gradients, dense_scores, projected_dense

PRECISE = GradientsConfig(dtype="float32", batch_tokens=96)
MAX_LENGTH = 24


class Pipeline:
    """Runs the tasks' bodies one after another and keeps what they return."""

    def __init__(self, store, checkpoint, corpus_file, queries_file, projection, curvature, gradients=PRECISE):
        self.store, self.model = str(store), ModelConfig(name=str(checkpoint), exclude=projection.pop("exclude", []))
        corpus_config = CorpusConfig(files=[str(corpus_file)], max_length=MAX_LENGTH)
        self.curvature_config = curvature
        self.corpus = prepare_corpus.fn(self.store, self.model, corpus_config)
        self.queries = prepare_queries.fn(self.store, self.model, QueriesConfig(file=str(queries_file)))
        self.bases = make_bases.fn(self.store, self.model, ProjectionConfig(**projection))
        self.curvature = None
        if curvature.kind != "none":
            self.curvature = fit_fisher.fn(
                self.store, self.model, self.corpus, self.bases, curvature, gradients.batch_tokens
            )
        self.gradients = self.indexed(self.corpus, gradients)
        self.query_gradients = self.indexed(self.queries, PRECISE)

    def indexed(self, corpus, gradients):
        return index_gradients.fn(self.store, self.model, corpus, self.bases, gradients, "test")

    def scores(self, workers=1, **scoring):
        return score_corpus.fn(
            self.store,
            self.corpus,
            self.gradients,
            self.queries,
            self.query_gradients,
            self.curvature,
            self.curvature_config.damping,
            ScoringConfig(save_matrix=True, **scoring),
            ClusterConfig(workers=workers),
        )


def matrix_by_id(scores, n_queries):
    group = zarr.open_group(ScoreStore.open(scores).matrix_path, mode="r")
    ids = group["document_id"][...].tolist()
    return dict(zip(ids, group["scores"][...][:n_queries].T, strict=True))


def reference(pipeline, checkpoint):
    """Dense gradients of all windows and queries, projected with the bases read back from the store."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).eval().requires_grad_(False)
    layers = tracked_layers(model, exclude=pipeline.model.exclude)
    projections = [entry.to(torch.device("cpu"), torch.float64) for entry in stored_projections(
        LayerStore.open(pipeline.bases))]  # fmt: skip

    def gradients(examples):
        found = dense_gradients(model, [layer.module for layer in layers], examples)
        return [
            [projected_dense(g, p).flatten().numpy() for g, p in zip(item, projections, strict=True)] for item in found
        ]

    def examples(store):
        pairs = []
        for window in range(store.n_examples):
            ids = torch.from_numpy(store.tokens(window).astype(np.int64))
            labels = ids.clone()
            labels[: store.windows["n_masked"][window]] = -100
            pairs.append((ids, labels))
        return pairs

    return model, gradients, examples


def mean_outer(items):
    return [np.mean([np.outer(item[layer], item[layer]) for item in items], axis=0) for layer in range(len(items[0]))]


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


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("projection", [{"kind": "identity"}, {"kind": "random", "rank": 5, "seed": 3}], ids=str)
def test_scores_equal_the_dense_computation(tmp_path, checkpoints, corpus_file, queries_file, name, projection):
    curvature = CurvatureConfig(labels="empirical", damping=DampingConfig(rule="relative", value=0.1))
    pipeline = Pipeline(tmp_path, checkpoints[name], corpus_file, queries_file, dict(projection), curvature)
    _, gradients, examples = reference(pipeline, checkpoints[name])
    corpus, queries = (gradients(examples(CorpusStore.open(ref))) for ref in (pipeline.corpus, pipeline.queries))
    expected = dense_scores(queries, corpus, mean_outer(corpus), None, ratio=0.1)
    assert_same_scores(matrix_by_id(pipeline.scores(), 2), document_scores(pipeline, expected))


def test_scores_with_sampled_labels_equal_the_dense_computation(tmp_path, checkpoints, corpus_file, queries_file):
    curvature = CurvatureConfig(labels="sampled", draws=3, damping=DampingConfig(rule="absolute", value=0.5))
    pipeline = Pipeline(tmp_path, checkpoints["llama"], corpus_file, queries_file, {"kind": "identity"}, curvature)
    model, gradients, examples = reference(pipeline, checkpoints["llama"])
    corpus_store = CorpusStore.open(pipeline.corpus)
    # The same draws in the same batches: all windows, in the order of their contents.
    order = np.lexsort((corpus_store.contents, corpus_store.column("n_tokens").to_numpy()))
    first = corpus_store.first_windows
    windows = np.concatenate([np.arange(first[document], first[document + 1]) for document in order])
    generator = torch.Generator().manual_seed(curvature.seed)
    in_float32 = model.float()
    drawn_examples = []
    for batch in batches_by_length(corpus_store.windows["n_tokens"][windows], PRECISE.batch_tokens):
        ids, mask, labels = corpus_batch(corpus_store, windows[batch], torch.device("cpu"))
        logits = in_float32(input_ids=ids, attention_mask=mask).logits
        for drawn in sampled_labels(logits, labels, 3, generator):
            lengths = mask.sum(dim=1)
            drawn_examples += [(ids[r, : lengths[r]], drawn[r, : lengths[r]]) for r in range(len(ids))]
    model.double()
    fisher = mean_outer(gradients(drawn_examples))
    corpus, queries = (gradients(examples(CorpusStore.open(ref))) for ref in (pipeline.corpus, pipeline.queries))
    expected = dense_scores(queries, corpus, fisher, 0.5)
    assert_same_scores(matrix_by_id(pipeline.scores(), 2), document_scores(pipeline, expected))


def test_relative_and_cosine_scores_equal_their_formulas(tmp_path, checkpoints, corpus_file, queries_file):
    curvature = CurvatureConfig(labels="empirical", damping=DampingConfig(rule="absolute", value=1.0))
    projection = {"kind": "random", "rank": 4}
    pipeline = Pipeline(tmp_path, checkpoints["llama"], corpus_file, queries_file, projection, curvature)
    _, gradients, examples = reference(pipeline, checkpoints["llama"])
    corpus, queries = (gradients(examples(CorpusStore.open(ref))) for ref in (pipeline.corpus, pipeline.queries))
    fisher = mean_outer(corpus)
    dot = dense_scores(queries, corpus, fisher, 1.0)
    own = np.sqrt(np.diag(dense_scores(corpus, corpus, fisher, 1.0)))
    of_query = np.sqrt(np.diag(dense_scores(queries, queries, fisher, 1.0)))
    relative = pipeline.scores(kind="relative")
    assert_same_scores(matrix_by_id(relative, 2), document_scores(pipeline, dot / own))
    cosine = pipeline.scores(kind="cosine")
    assert_same_scores(matrix_by_id(cosine, 2), document_scores(pipeline, dot / own / of_query[:, None]))
    passages = ScoreStore.open(pipeline.scores(kind="dot")).passages.to_pandas()
    expected = document_scores(pipeline, dot / own)
    for found in passages[passages["query_id"] == "q1"].itertuples():
        assert found.relative_score == pytest.approx(expected[found.document_id][1], rel=1e-3, abs=1e-4)


def test_without_curvature_scores_are_plain_inner_products(tmp_path, checkpoints, corpus_file, queries_file):
    pipeline = Pipeline(
        tmp_path, checkpoints["gpt2"], corpus_file, queries_file, {"kind": "identity"}, CurvatureConfig(kind="none")
    )
    _, gradients, examples = reference(pipeline, checkpoints["gpt2"])
    corpus, queries = (gradients(examples(CorpusStore.open(ref))) for ref in (pipeline.corpus, pipeline.queries))
    expected = dense_scores(queries, corpus, None, None)
    assert_same_scores(matrix_by_id(pipeline.scores(), 2), document_scores(pipeline, expected))


@pytest.fixture
def small(tmp_path, checkpoints, corpus_file, queries_file):
    return Pipeline(
        tmp_path,
        checkpoints["llama"],
        corpus_file,
        queries_file,
        {"kind": "random", "rank": 3},
        CurvatureConfig(draws=2),
        GradientsConfig(batch_tokens=96),
    )


def test_everything_left_is_consistent(small):
    scores = ScoreStore.open(small.scores(top_k=4))
    by_id = matrix_by_id(small.scores(top_k=4), 3)
    corpus = CorpusStore.open(small.corpus)
    documents = {row["document_id"]: row for row in corpus.documents()}
    np.testing.assert_array_equal(by_id["d0"], by_id["copy"])
    passages = scores.passages.to_pandas()
    for number, query in enumerate(["q0", "q1", "*"]):
        order = sorted(by_id, key=lambda name: (-by_id[name][number], name))
        top = passages[(passages["query_id"] == query) & (passages["rank"] > 0)]
        assert top["document_id"].tolist() == order[:4]
        assert top["rank"].tolist() == [1, 2, 3, 4]
        bottom = passages[(passages["query_id"] == query) & (passages["rank"] < 0)]
        worst = sorted(by_id, key=lambda name: (by_id[name][number], name))
        assert bottom["document_id"].tolist() == worst[:4]
    for row in passages.itertuples():
        document = documents[row.document_id]
        assert document["text"][row.window_start :].startswith(row.text)
        assert row.source == document["source"]
    values = value_sources.fn(small.store, small.scores(top_k=4), SourcesConfig())
    from storage.coalitions import CoalitionStore

    table = CoalitionStore.open(values).values.to_pandas()
    for row in table.itertuples():
        number = ["q0", "q1", "*"].index(row.query_id)
        own = [by_id[name][number] for name, document in documents.items() if document["source"] == row.source]
        assert row.value == pytest.approx(sum(own), rel=1e-5, abs=1e-6)
        assert row.n_documents == len(own)
        assert row.low < row.value < row.high
    assert table[table["query_id"] == "*"]["share"].sum() == pytest.approx(1.0)


def test_results_do_not_depend_on_the_number_of_workers(small, monkeypatch, tmp_path):
    from storage.locations import StoreFolders

    def everything(workers):
        ref = small.scores(workers=workers)
        store = ScoreStore.open(ref)
        content = (store.passages.to_pylist(), store.source_sums.to_pylist(), matrix_by_id(ref, 3))
        import shutil

        shutil.rmtree(StoreFolders(tmp_path).scores)
        return content

    one, two = everything(1), everything(2)
    assert one[0] == two[0]
    assert one[1] == two[1]
    assert all(np.array_equal(one[2][name], two[2][name]) for name in one[2])


def test_indexing_again_computes_nothing_and_new_documents_alone(small, corpus_file, monkeypatch):
    counted = []
    from tasks.gradients import task as module

    real = module.gradient_rows

    def counting(model, capture, *batch):
        counted.append(len(batch[0]))
        return real(model, capture, *batch)

    monkeypatch.setattr(module, "gradient_rows", counting)
    before = GradientStore.open(small.gradients).rows_of(CorpusStore.open(small.corpus).contents)
    assert small.indexed(small.corpus, GradientsConfig(batch_tokens=96)) == small.gradients
    assert counted == []
    with corpus_file.open("a") as file:
        file.write('{"id": "new", "source": "s9", "text": "Nothing like this was read before."}\n')
    config = CorpusConfig(files=[str(corpus_file)], max_length=MAX_LENGTH)
    grown = prepare_corpus.fn(small.store, small.model, config)
    assert small.indexed(grown, GradientsConfig(batch_tokens=96)) == small.gradients
    assert counted == [1]
    after = GradientStore.open(small.gradients).rows_of(CorpusStore.open(small.corpus).contents)
    assert all(np.array_equal(one, two) for one, two in zip(before, after, strict=True))


def test_a_row_in_the_store_does_not_depend_on_its_neighbours(tmp_path, checkpoints, corpus_file, queries_file, small):
    """Other shards, other batches: the same gradient up to rounding of the stored type."""
    contents = CorpusStore.open(small.corpus).contents
    batched = GradientStore.open(small.gradients).rows_of(contents)
    other = Pipeline(
        tmp_path / "other",
        checkpoints["llama"],
        corpus_file,
        queries_file,
        {"kind": "random", "rank": 3},
        CurvatureConfig(kind="none"),
        GradientsConfig(batch_tokens=2, dtype="float32"),
    )
    alone = GradientStore.open(other.gradients).rows_of(contents)
    for one, two in zip(batched, alone, strict=True):
        np.testing.assert_allclose(one.astype(np.float32), two, rtol=2e-3, atol=1e-3)


def test_completions_are_written_by_the_model(tmp_path, checkpoints, small):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "p", "prompt": "The river"}\n')
    ref = prepare_queries.fn(small.store, small.model, QueriesConfig(file=str(path), max_new_tokens=5))
    (row,) = CorpusStore.open(ref).documents()
    assert row["text"].startswith("The river")
    assert len(row["text"]) > row["n_prompt_characters"] == len("The river")
    assert prepare_queries.fn(small.store, small.model, QueriesConfig(file=str(path), max_new_tokens=5)) == ref


def test_refusals_in_one_sentence(tmp_path, small, corpus_file):
    with pytest.raises(InputError, match="the model reads at most 64 tokens; pass --corpus.max_length 64"):
        prepare_corpus.fn(small.store, small.model, CorpusConfig(files=[str(corpus_file)], max_length=65))
    prompt = tmp_path / "long.jsonl"
    prompt.write_text('{"id": "p", "prompt": "%s"}\n' % ("long " * 80))
    with pytest.raises(InputError, match="leaves the model no room"):
        prepare_queries.fn(small.store, small.model, QueriesConfig(file=str(prompt)))
    single = tmp_path / "single.jsonl"
    single.write_text('{"id": "d", "source": "s", "text": "fine words"}\n')
    grown = prepare_corpus.fn(small.store, small.model, CorpusConfig(files=[str(single)], max_length=MAX_LENGTH))
    small.corpus = grown
    with pytest.raises(StoreIncompleteError, match="0 of 1 documents: run index-corpus first"):
        small.scores()


def test_a_dense_fisher_too_large_is_refused(tmp_path, small, monkeypatch):
    monkeypatch.setattr("tasks.curvature.task.MOST_COLUMNS", 8)
    with pytest.raises(InputError, match="a dense Fisher holds at most 8"):
        fit_fisher.fn(small.store, small.model, small.corpus, small.bases, CurvatureConfig(seed=1), 96)
