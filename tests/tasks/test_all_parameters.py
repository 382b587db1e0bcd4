"""A run of every parameter, from files to scores: against dense formulas on autograd's gradients."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dataworth.storage.layers import LayerStore
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.projection.logra import stored_projections
from tests.harness.pipeline import Pipeline, assert_same_scores, document_scores, in_nats, matrix_by_id, tokens_of
from tests.reference.dense import dense_scores, negative_log_likelihood, projected_dense
from tests.tasks.test_pipeline import drawn_examples, mean_outer

EVERYTHING = {"parameters": "all"}


def dense_of(pipeline, checkpoint):
    """For each example the flat projected gradient of every layer."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).eval().requires_grad_(False)
    layers = load(ModelConfig(name=str(checkpoint), parameters="all")).layers
    own = dict(model.named_parameters(remove_duplicate=False))
    sides = [
        entry.to(torch.device("cpu"), torch.float64) for entry in stored_projections(LayerStore.open(pipeline.bases))
    ]
    assert [side.name for side in sides] == [layer.name for layer in layers]

    def gradients(examples):
        found = []
        for example in examples:
            names = [name for layer in layers for name in layer.parameters]
            wanted = [own[name].requires_grad_(True) for name in names]
            flat = dict(zip(names, torch.autograd.grad(negative_log_likelihood(model, *example), wanted), strict=True))
            matrices = [layer.matrix([flat[name] for name in layer.parameters]) for layer in layers]
            found.append([projected_dense(m, s).flatten().numpy() for m, s in zip(matrices, sides, strict=True)])
        return found

    return gradients


def stacked(items):
    return np.stack([np.concatenate(item) for item in items])


# Of llama, embeddings and head are two tables; of gpt2 they are one.
def test_products_of_all_parameters(tmp_path, checkpoints, corpus_file, queries_file):
    settings = (checkpoints["llama"], corpus_file, queries_file, {"kind": "identity"} | EVERYTHING)
    pipeline = Pipeline(tmp_path, *settings, CurvatureConfig(kind="none"))
    gradients = dense_of(pipeline, checkpoints["llama"])
    corpus, queries = (stacked(gradients(tokens_of(ref))) for ref in (pipeline.corpus, pipeline.queries))
    assert_same_scores(matrix_by_id(pipeline.scores(), 2), document_scores(pipeline, queries @ corpus.T))


@pytest.mark.parametrize(("name", "kind"), [("gpt2", "random"), ("llama", "pca")])
def test_scores_of_all_parameters(tmp_path, checkpoints, corpus_file, queries_file, name, kind):
    curvature = CurvatureConfig(labels="empirical", damping=DampingConfig(rule="relative", value=0.1))
    settings = (checkpoints[name], corpus_file, queries_file, {"kind": kind, "rank": 4} | EVERYTHING, curvature)
    pipeline = Pipeline(tmp_path, *settings)
    gradients = dense_of(pipeline, checkpoints[name])
    corpus, queries = (gradients(tokens_of(ref)) for ref in (pipeline.corpus, pipeline.queries))
    expected = dense_scores(queries, corpus, mean_outer(corpus), None, ratio=0.1)
    assert_same_scores(matrix_by_id(pipeline.scores(), 2), document_scores(pipeline, in_nats(pipeline, expected)))


def test_scores_of_all_parameters_with_sampled_labels(tmp_path, checkpoints, corpus_file, queries_file):
    """The head meets all draws of a piece before the body meets the first."""
    curvature = CurvatureConfig(labels="sampled", draws=3, damping=DampingConfig(rule="absolute", value=0.5))
    settings = (checkpoints["gpt2"], corpus_file, queries_file, {"kind": "random", "rank": 4} | EVERYTHING, curvature)
    pipeline = Pipeline(tmp_path, *settings)
    model = AutoModelForCausalLM.from_pretrained(checkpoints["gpt2"]).eval().requires_grad_(False)
    examples = drawn_examples(pipeline, model, 3)
    gradients = dense_of(pipeline, checkpoints["gpt2"])
    corpus, queries = (gradients(tokens_of(ref)) for ref in (pipeline.corpus, pipeline.queries))
    expected = dense_scores(queries, corpus, mean_outer(gradients(examples)), 0.5)
    assert_same_scores(matrix_by_id(pipeline.scores(), 2), document_scores(pipeline, in_nats(pipeline, expected)))


def test_ekfac_of_all_parameters(tmp_path, checkpoints, corpus_file, queries_file):
    """Its eigenvalues are second moments of the gradients in its eigenvectors, whatever the layer's kind."""
    curvature = CurvatureConfig(kind="ekfac", labels="empirical")
    settings = (checkpoints["gpt2"], corpus_file, queries_file, {"kind": "pca", "rank": 4} | EVERYTHING, curvature)
    pipeline = Pipeline(tmp_path, *settings)
    corpus = dense_of(pipeline, checkpoints["gpt2"])(tokens_of(pipeline.corpus))
    fitted = LayerStore.open(pipeline.curvature)
    for number, layer in enumerate(fitted.layers):
        kept = {key: fitted.matrix(layer.name, key) for key in fitted.names(layer.name)}
        outputs, inputs = kept["output_eigenvectors"], kept["input_eigenvectors"]
        np.testing.assert_allclose(outputs.T @ outputs, np.eye(layer.k_out), atol=1e-5)
        np.testing.assert_allclose(inputs.T @ inputs, np.eye(layer.k_in), atol=1e-5)
        blocks = [example[number].reshape(layer.k_out, layer.k_in) for example in corpus]
        expected = np.mean([(outputs.T @ block @ inputs) ** 2 for block in blocks], axis=0)
        np.testing.assert_allclose(kept["eigenvalues"], expected, rtol=1e-3, atol=1e-6 * expected.max())
