"""The recipe of a checkpoint's training, and that of the digits', end where the trainings themselves end."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.corpus.examples import CorpusExamples, Part
from dataworth.tasks.counterfactual.digits import DigitsProblem
from dataworth.tasks.model.loading import load
from dataworth.tasks.training.recipes import recipe_of
from dataworth.tasks.training.replay import Replay
from dataworth.tasks.training.retraining import as_it_was, train
from tests.harness.tuned import TRAINING, tuned


@pytest.fixture
def run(tmp_path, corpus_file, queries_file):
    """A tuned model, and its base."""
    return tuned(tmp_path, corpus_file, queries_file)


@pytest.mark.parametrize("batching", ["padded", "equal", "alone"])
def test_a_checkpoints_recipe_ends_where_its_training_does(run, batching):
    base, corpus = load(run.model, 1.0), CorpusStore.open(run.corpus)
    base = replace(base, reading=replace(base.reading, batching=batching))
    replay = Replay(recipe_of(base, corpus, TRAINING))
    assert (len(replay.recipe.steps[0].parts) > 1) == (batching == "alone")
    with as_it_was(base) as before:
        train(base, corpus, np.arange(corpus.n_examples), TRAINING)
        trained = {name: weight.detach().clone() for name, weight in base.model.named_parameters()}
    for name, weight in replay.weights().items():
        moved = (trained[name] - before[name]).norm()
        assert (weight - trained[name]).norm() < 1e-3 * moved
    assert replay.weights().keys() == trained.keys()


def test_what_a_document_did_is_found_whatever_it_was_asked_with(run):
    base, corpus, queries = load(run.model, 1.0), CorpusStore.open(run.corpus), CorpusStore.open(run.queries)
    replay, asked = Replay(recipe_of(base, corpus, TRAINING)), CorpusExamples(queries)
    both = replay.derivatives(asked)
    assert both.shape == (2, corpus.n_examples)
    assert (both != 0).all()
    alone = replay.derivatives(Part(asked, np.array([1])))
    np.testing.assert_allclose(alone[0], both[1], rtol=1e-3, atol=1e-4 * np.abs(both).max())


def test_the_digits_recipe_ends_where_their_training_does():
    problem = DigitsProblem()
    replay = Replay(problem.recipe(0))
    for name, weight in problem.models()[0].model.named_parameters():
        torch.testing.assert_close(replay.weights()[name], weight, rtol=1e-3, atol=1e-3)
