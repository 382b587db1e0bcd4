"""Weights of models that nobody trained, against the formula and against weights that are put in place by hand."""

import numpy as np
import pytest
import torch
from safetensors.torch import load as unpacked

from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.model.loading import load
from dataworth.tasks.training import merging, retraining
from tests.harness.tuned import NAMES, TRAINING, tuned


@pytest.fixture
def run(tmp_path, corpus_file, queries_file):
    """A tuned model, and its base."""
    return tuned(tmp_path, corpus_file, queries_file)


def test_a_merged_model_is_measured_as_if_it_were_loaded(run):
    masks = np.array([[True, True, True], [True, False, False]])
    base, queries = load(run.model, 1.0), CorpusStore.open(run.queries)
    before, differences = query_losses(base, queries), []
    corpus = CorpusStore.open(run.corpus)
    of_windows = retraining.window_players(corpus, "source", NAMES)
    for mask in masks:
        with retraining.as_it_was(base) as start:
            retraining.train(base, corpus, np.flatnonzero(mask[of_windows]), TRAINING)
            differences.append(retraining.packed_difference(base.model, start))
            trained = query_losses(base, queries)
    coefficients = np.array([[0.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.3, -0.2], [1.0, 1.0]])
    models = merging.MergedModels(base, iter(differences), 2)
    found = models.losses(coefficients, queries)
    np.testing.assert_allclose(found[0], before, rtol=1e-6)
    np.testing.assert_allclose(found[1], trained, rtol=1e-2)  # bfloat16
    parts = [unpacked(difference)["difference"].float() for difference in differences]
    with retraining.as_it_was(base), torch.no_grad():
        first = 0
        for weight in base.model.parameters():
            rows = slice(first, first + weight.numel())
            weight += (0.3 * parts[0][rows] - 0.2 * parts[1][rows]).view_as(weight)
            first += weight.numel()
        np.testing.assert_allclose(found[3], query_losses(base, queries), rtol=1e-5)
    np.testing.assert_array_equal(query_losses(base, queries), before)
    whole, alone = parts
    along = float(0.5 * alone.double() @ whole.double() / (whole.double() @ whole.double()))
    np.testing.assert_allclose(models.along(np.array([[0.0, 0.5], [2.0, 0.0]]), 0), [along, 2.0], rtol=1e-4)
    np.testing.assert_allclose(models.lengths(), [float(part.norm()) for part in parts], rtol=1e-4)


def test_merging_is_kernel_ridge_regression():
    tokens, masks = np.array([5.0, 80.0, 20.0, 20.0]), all_coalitions(4)[1:]
    chosen = masks[:7]
    nobody = merging.merging_coefficients(np.zeros((1, 4), bool), chosen, tokens)
    np.testing.assert_array_equal(nobody, 0)
    part = tokens / tokens.sum()

    def kernel(one, two):
        common = (part * one * two).sum()
        return common / np.sqrt((part * one).sum() * (part * two).sum()) + (one * two).sum() / 2

    among = np.array([[kernel(one, two) for two in chosen] for one in chosen])
    among += 0.01 * np.trace(among) / 7 * np.eye(7)
    against = np.array([kernel(masks[12], two) for two in chosen])
    np.testing.assert_allclose(
        merging.merging_coefficients(masks[[12]], chosen, tokens)[0], np.linalg.inv(among) @ against
    )
