"""From documents to scores through the tasks' bodies, against a dense, autograd-only computation."""

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError, StoreError, StoreIncompleteError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.layers import LayerStore
from dataworth.storage.ref import StoreRef
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.capture.losses import drawn_labels
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.steps import value_sources
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.draws import label_uniforms
from dataworth.tasks.corpus.steps import prepare_corpus, prepare_queries
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.curvature.steps import fit_matrices
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.layers import tracked_layers
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.logra import stored_projections
from dataworth.tasks.projection.steps import make_bases
from tests.harness.pipeline import (
    MAX_LENGTH,
    Pipeline,
    assert_same_scores,
    document_scores,
    in_nats,
    matrix_by_id,
    tokens_of,
)
from tests.reference.dense import dense_factors, dense_gradients, dense_scores, projected_dense


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

    return model, gradients


def mean_outer(items):
    return [np.mean([np.outer(item[layer], item[layer]) for item in items], axis=0) for layer in range(len(items[0]))]


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("projection", [{"kind": "identity"}, {"kind": "random", "rank": 5, "seed": 3}], ids=str)
def test_scores_equal_the_dense_computation(tmp_path, checkpoints, corpus_file, queries_file, name, projection):
    curvature = CurvatureConfig(labels="empirical", damping=DampingConfig(rule="relative", value=0.1))
    pipeline = Pipeline(tmp_path, checkpoints[name], corpus_file, queries_file, dict(projection), curvature)
    _, gradients = reference(pipeline, checkpoints[name])
    corpus, queries = (gradients(tokens_of(ref)) for ref in (pipeline.corpus, pipeline.queries))
    expected = dense_scores(queries, corpus, mean_outer(corpus), None, ratio=0.1)
    assert_same_scores(matrix_by_id(pipeline.scores(), 2), document_scores(pipeline, in_nats(pipeline, expected)))


def drawn_examples(pipeline, model, draws):
    """Every window under each draw of its labels: the same numbers as in a run, each example by itself."""
    corpus, found = CorpusStore.open(pipeline.corpus), []
    for window, (ids, labels) in enumerate(tokens_of(pipeline.corpus)):
        document = corpus.windows["document"][window]
        place = int(window - corpus.first_windows[document])
        of_window = ([corpus.contents[document]], [place], [len(ids) - 1], draws)
        uniforms = torch.from_numpy(label_uniforms(*of_window, pipeline.curvature_config.seed))
        drawn, _ = drawn_labels(uniforms)(model(input_ids=ids[None]).logits[0, :-1], slice(0, len(ids) - 1))
        found += [(ids, torch.cat([labels[:1], own])) for own in drawn]
    return found


def test_scores_with_sampled_labels_equal_the_dense_computation(tmp_path, checkpoints, corpus_file, queries_file):
    curvature = CurvatureConfig(labels="sampled", draws=3, damping=DampingConfig(rule="absolute", value=0.5))
    pipeline = Pipeline(tmp_path, checkpoints["llama"], corpus_file, queries_file, {"kind": "identity"}, curvature)
    model, gradients = reference(pipeline, checkpoints["llama"])
    examples = drawn_examples(pipeline, model.float(), 3)
    model.double()
    fisher = mean_outer(gradients(examples))
    corpus, queries = (gradients(tokens_of(ref)) for ref in (pipeline.corpus, pipeline.queries))
    expected = dense_scores(queries, corpus, fisher, 0.5)
    assert_same_scores(matrix_by_id(pipeline.scores(), 2), document_scores(pipeline, in_nats(pipeline, expected)))


def kronecker_curvature(kind, pipeline, checkpoint, corpus):
    """Per layer the dense matrix that KFAC or EK-FAC stands for, in the projected space, with empirical labels."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).eval().requires_grad_(False)
    modules = [layer.module for layer in tracked_layers(model)]
    projections = stored_projections(LayerStore.open(pipeline.bases))
    matrices = []
    factors = dense_factors(model, modules, tokens_of(pipeline.corpus))
    for number, ((inputs, outputs), projection) in enumerate(zip(factors, projections, strict=True)):
        a_basis = np.asarray(getattr(projection.input_side, "basis", np.eye(len(inputs))), np.float64)
        s_basis = np.asarray(getattr(projection.output_side, "basis", np.eye(len(outputs))), np.float64)
        a, s = a_basis @ inputs @ a_basis.T, s_basis @ outputs @ s_basis.T
        if kind == "kfac":
            matrices.append(np.kron(s, a))
            continue
        vectors = np.kron(np.linalg.eigh(s)[1], np.linalg.eigh(a)[1])
        squares = np.mean([(vectors.T @ item[number]) ** 2 for item in corpus], axis=0)
        matrices.append(vectors @ np.diag(squares) @ vectors.T)
    return matrices


@pytest.mark.parametrize("kind", ["kfac", "ekfac"])
@pytest.mark.parametrize(
    "projection", [{"kind": "identity"}, {"kind": "random", "rank": 5}, {"kind": "pca", "rank": 5}], ids=str
)
def test_scores_with_kronecker_factors_equal_the_dense_computation(
    tmp_path, checkpoints, corpus_file, queries_file, kind, projection
):
    curvature = CurvatureConfig(kind=kind, labels="empirical", damping=DampingConfig(rule="relative", value=0.1))
    checkpoint = checkpoints["llama with biases"]
    pipeline = Pipeline(tmp_path, checkpoint, corpus_file, queries_file, dict(projection), curvature)
    _, gradients = reference(pipeline, checkpoint)
    corpus, queries = (gradients(tokens_of(ref)) for ref in (pipeline.corpus, pipeline.queries))
    dense = kronecker_curvature(kind, pipeline, checkpoint, corpus)
    expected = dense_scores(queries, corpus, dense, None, ratio=0.1)
    assert_same_scores(matrix_by_id(pipeline.scores(), 2), document_scores(pipeline, in_nats(pipeline, expected)))
    own = np.sqrt(np.diag(dense_scores(corpus, corpus, dense, None, ratio=0.1)))
    relative = pipeline.scores(kind="relative")
    assert_same_scores(matrix_by_id(relative, 2), document_scores(pipeline, expected / own))


def test_pca_bases_are_the_leading_eigenvectors(tmp_path, checkpoints, corpus_file, queries_file):
    curvature = CurvatureConfig(kind="none", labels="empirical")
    projection = {"kind": "pca", "rank": 5}
    pipeline = Pipeline(tmp_path, checkpoints["gpt2"], corpus_file, queries_file, projection, curvature)
    model = AutoModelForCausalLM.from_pretrained(checkpoints["gpt2"], dtype=torch.float64).eval().requires_grad_(False)
    factors = dense_factors(model, [layer.module for layer in tracked_layers(model)], tokens_of(pipeline.corpus))
    for entry, covariances in zip(stored_projections(LayerStore.open(pipeline.bases)), factors, strict=True):
        for side, covariance in zip((entry.input_side, entry.output_side), covariances, strict=True):
            basis = side.basis.numpy().astype(np.float64)
            np.testing.assert_allclose(basis @ basis.T, np.eye(5), atol=1e-5)
            kept = np.trace(basis @ covariance @ basis.T)
            best = np.linalg.eigvalsh(covariance)[-5:].sum()
            assert kept == pytest.approx(best, rel=1e-4)


def test_a_killed_fit_goes_on_from_what_it_kept(tmp_path, checkpoints, corpus_file, queries_file, monkeypatch):
    """Interrupted after three batches, with what it had kept: the same matrices, each batch computed once."""
    from dataworth.tasks.curvature import fitting
    from dataworth.tasks.curvature import passes as module

    def fitted(store, kind, stop_after=None):
        passes, real = [], module.backward_passes

        def counted(*arguments):
            if len(passes) == stop_after:
                raise KeyboardInterrupt
            passes.append(1)
            return real(*arguments)

        monkeypatch.setattr(module, "backward_passes", counted)
        monkeypatch.setattr(fitting, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        monkeypatch.setattr(fitting, "PAUSE_OF_SAVING", 0)
        curvature = CurvatureConfig(kind=kind, draws=2)
        try:
            pipeline = Pipeline(
                store, checkpoints["llama"], corpus_file, queries_file, {"kind": "random", "rank": 3}, curvature
            )
        except KeyboardInterrupt:
            return len(passes), None
        finally:
            monkeypatch.setattr(module, "backward_passes", real)
        store = LayerStore.open(pipeline.curvature)
        return len(passes), {
            (layer.name, key): store.matrix(layer.name, key)
            for layer in store.layers
            for key in store.names(layer.name)
        }

    for kind in ("fisher", "ekfac"):
        n_passes, expected = fitted(tmp_path / f"{kind} whole", kind)
        assert n_passes > 4
        assert fitted(tmp_path / f"{kind} killed", kind, stop_after=3) == (3, None)
        n_rest, found = fitted(tmp_path / f"{kind} killed", kind)
        assert n_rest == n_passes - 3
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[key], expected[key]) for key in expected)
        assert not list((tmp_path / f"{kind} killed" / "layers").glob(".partial*"))


def test_earlier_bases_are_used_as_they_are(tmp_path, checkpoints, corpus_file, queries_file, small):
    bases = StoreRef(**small.bases.model_dump()).location
    again = make_bases(str(tmp_path / "elsewhere"), small.model, ProjectionConfig(bases=bases))
    assert again.fingerprint == small.bases.fingerprint
    other = ModelConfig(name=str(checkpoints["gpt2"]))
    with pytest.raises(InputError, match="made for other layers"):
        make_bases(small.store, other, ProjectionConfig(bases=bases))
    with pytest.raises(InputError, match="no bases, but another kind"):
        make_bases(small.store, small.model, ProjectionConfig(bases=small.curvature.location))
    with pytest.raises(InputError, match="holds no finished bases"):
        make_bases(small.store, small.model, ProjectionConfig(bases=str(tmp_path)))


def test_exact_labels_and_factors_are_refused_where_they_are_not_defined(small):
    with pytest.raises(InputError, match="which a classifier has and a language model does not"):
        fit_matrices(small.store, small.model, small.corpus, small.bases, None, CurvatureConfig(labels="exact"), 96)
    sketched = make_bases(small.store, small.model, ProjectionConfig(kind="factgrass", rank=3))
    with pytest.raises(InputError, match="factgrass sketches together"):
        fit_matrices(small.store, small.model, small.corpus, sketched, None, CurvatureConfig(kind="ekfac"), 96)


def test_relative_and_cosine_scores_equal_their_formulas(tmp_path, checkpoints, corpus_file, queries_file):
    curvature = CurvatureConfig(labels="empirical", damping=DampingConfig(rule="absolute", value=1.0))
    projection = {"kind": "random", "rank": 4}
    pipeline = Pipeline(tmp_path, checkpoints["llama"], corpus_file, queries_file, projection, curvature)
    _, gradients = reference(pipeline, checkpoints["llama"])
    corpus, queries = (gradients(tokens_of(ref)) for ref in (pipeline.corpus, pipeline.queries))
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
    _, gradients = reference(pipeline, checkpoints["gpt2"])
    corpus, queries = (gradients(tokens_of(ref)) for ref in (pipeline.corpus, pipeline.queries))
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
    values = value_sources(small.store, small.scores(top_k=4), SourcesConfig())
    from dataworth.storage.coalitions import CoalitionStore

    table = CoalitionStore.open(values).values.to_pandas()
    for row in table.itertuples():
        number = ["q0", "q1", "*"].index(row.query_id)
        own = [by_id[name][number] for name, document in documents.items() if document["source"] == row.source]
        assert row.value == pytest.approx(sum(own), rel=1e-5, abs=1e-6)
        assert row.n_documents == len(own)
        assert row.low < row.value < row.high
    assert table[table["query_id"] == "*"]["share"].sum() == pytest.approx(1.0)


def test_results_do_not_depend_on_the_number_of_workers(small, monkeypatch, tmp_path):
    from dataworth.storage.locations import StoreFolders

    def everything(workers):
        ref = small.scores(workers=workers)
        store = ScoreStore.open(ref)
        content = (store.passages.to_pylist(), store.source_sums.to_pylist(), matrix_by_id(ref, 3))
        shutil.rmtree(StoreFolders(tmp_path).scores)
        return content

    one, two = everything(1), everything(2)
    assert one[0] == two[0]
    assert one[1] == two[1]
    assert all(np.array_equal(one[2][name], two[2][name]) for name in one[2])


def test_indexing_again_computes_nothing_and_new_documents_alone(small, corpus_file, monkeypatch):
    counted = []
    from dataworth.tasks.gradients import steps as module

    real = module.gradient_rows

    def counting(body, head, capture, *batch):
        counted.append(len(batch[0]))
        return real(body, head, capture, *batch)

    monkeypatch.setattr(module, "gradient_rows", counting)
    before = GradientStore.open(small.gradients).rows_of(CorpusStore.open(small.corpus).contents)
    assert small.indexed(small.corpus, GradientsConfig(batch_tokens=96)) == small.gradients
    assert counted == []
    with corpus_file.open("a") as file:
        file.write('{"id": "new", "source": "s9", "text": "Nothing like this was read before."}\n')
    config = CorpusConfig(files=[str(corpus_file)], max_length=MAX_LENGTH)
    grown = prepare_corpus(small.store, small.model, config)
    assert small.indexed(grown, GradientsConfig(batch_tokens=96)) == small.gradients
    assert counted == [1]
    after = GradientStore.open(small.gradients).rows_of(CorpusStore.open(small.corpus).contents)
    assert all(np.array_equal(one, two) for one, two in zip(before, after, strict=True))


def test_out_of_memory_goes_on_with_smaller_batches(small, tmp_path, monkeypatch, caplog):
    from dataworth.tasks.gradients import steps as module

    real, most = module.gradient_rows, 2

    def refusing(body, head, capture, *batch):
        if len(batch[0]) > most:
            raise torch.OutOfMemoryError
        return real(body, head, capture, *batch)

    monkeypatch.setattr(module, "gradient_rows", refusing)
    contents = CorpusStore.open(small.corpus).contents
    elsewhere = GradientsConfig(dtype="float32", batch_tokens=256)
    found = GradientStore.open(small.indexed(small.corpus, elsewhere)).rows_of(contents)
    assert "going on with batches of 64 tokens" in caplog.text
    for one, two in zip(found, GradientStore.open(small.gradients).rows_of(contents), strict=True):
        np.testing.assert_allclose(one, two.astype(np.float32), rtol=2e-3, atol=1e-3)
    most = 0
    shutil.rmtree(tmp_path / "gradients")
    with pytest.raises(StoreError, match="not enough memory for 24 tokens: lower --corpus.max_length"):
        small.indexed(small.corpus, elsewhere)


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
    ref = prepare_queries(small.store, small.model, QueriesConfig(file=str(path), max_new_tokens=5))
    (row,) = CorpusStore.open(ref).documents()
    assert row["text"].startswith("The river")
    assert len(row["text"]) > row["n_prompt_characters"] == len("The river")
    assert prepare_queries(small.store, small.model, QueriesConfig(file=str(path), max_new_tokens=5)) == ref


def test_refusals_in_one_sentence(tmp_path, small, corpus_file):
    with pytest.raises(InputError, match="the model reads at most 64 tokens; pass --corpus.max_length 64"):
        prepare_corpus(small.store, small.model, CorpusConfig(files=[str(corpus_file)], max_length=65))
    prompt = tmp_path / "long.jsonl"
    prompt.write_text('{"id": "p", "prompt": "%s"}\n' % ("long " * 80))
    with pytest.raises(InputError, match="leaves the model no room"):
        prepare_queries(small.store, small.model, QueriesConfig(file=str(prompt)))
    single = tmp_path / "single.jsonl"
    single.write_text('{"id": "d", "source": "s", "text": "fine words"}\n')
    grown = prepare_corpus(small.store, small.model, CorpusConfig(files=[str(single)], max_length=MAX_LENGTH))
    small.corpus = grown
    with pytest.raises(StoreIncompleteError, match="0 of 1 documents: run index-corpus first"):
        small.scores()


def test_layers_too_wide_for_a_dense_fisher_get_one_of_low_rank(
    tmp_path, checkpoints, corpus_file, queries_file, monkeypatch
):
    """At a rank that holds the whole Fisher: the scores of the dense computation; interrupted, it goes on."""
    monkeypatch.setattr("dataworth.tasks.curvature.fitting.MAX_COLUMNS", 8)
    curvature = CurvatureConfig(labels="empirical", low_rank=25, damping=DampingConfig(rule="absolute", value=0.5))
    projection = {"kind": "random", "rank": 5}
    pipeline = Pipeline(tmp_path, checkpoints["llama"], corpus_file, queries_file, projection, curvature)
    names = {tuple(LayerStore.open(pipeline.curvature).names(layer.name)) for layer in
             LayerStore.open(pipeline.bases).layers}  # fmt: skip
    assert names == {("low_rank", "residual")}
    _, gradients = reference(pipeline, checkpoints["llama"])
    corpus, queries = (gradients(tokens_of(ref)) for ref in (pipeline.corpus, pipeline.queries))
    expected = dense_scores(queries, corpus, mean_outer(corpus), 0.5)
    assert_same_scores(matrix_by_id(pipeline.scores(), 2), document_scores(pipeline, in_nats(pipeline, expected)))
