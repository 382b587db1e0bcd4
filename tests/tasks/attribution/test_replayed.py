"""The audit's method `replay`: the mean of what trainings in several orders tell, and who has none."""

from dataclasses import replace

import numpy as np
import pytest

from dataworth.storage.layers import LayerStore
from dataworth.tasks.attribution.methods import lacking
from dataworth.tasks.attribution.replayed import ReplayedTraining
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.corpus.examples import ShuffledLabels
from dataworth.tasks.counterfactual.parts import MethodRun
from dataworth.tasks.counterfactual.problem import CheckpointProblem
from dataworth.tasks.counterfactual.steps import attribute
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.training.replay import Replay
from tests.harness.tuned import TRAINING, tuned
from tests.reference.instant import Instant


@pytest.fixture
def place(tmp_path, corpus_file, queries_file):
    """A tuned model, and its base."""
    run = tuned(tmp_path, corpus_file, queries_file)
    return CheckpointProblem((run.model,), run.corpus, run.queries, TRAINING, "tuned")


def run_of(**more):
    return MethodRun(method="replay", projection=ProjectionConfig(), curvature=CurvatureConfig(), **more)


def test_an_audit_takes_the_mean_over_orders_and_documents_are_sums(place, tmp_path):
    found = LayerStore.open(attribute(str(tmp_path / "audit"), place, run_of(), ClusterConfig(), 2))
    by_seed = [-Replay(place.recipe(seed)).derivatives(place.queries) for seed in range(2)]
    assert not np.allclose(*by_seed)
    expected = np.zeros((place.examples.n_documents, 2))
    np.add.at(expected, place.examples.documents, np.mean(by_seed, axis=0).T)
    (layer,) = found.layers
    np.testing.assert_allclose(found.matrix(layer.name, "scores"), expected.T, rtol=1e-4, atol=1e-6)


def test_shuffled_labels_are_trained_on(place):
    shuffled = ShuffledLabels(place.examples, 0)
    found = ReplayedTraining(place.recipe, [0]).fit([], shuffled).score(place.queries)
    expected = -Replay(replace(place.recipe(0), examples=shuffled)).derivatives(place.queries)
    np.testing.assert_array_equal(found, expected)
    plain = ReplayedTraining(place.recipe, [0]).fit([], place.examples).score(place.queries)
    assert not np.allclose(found, plain)


def test_nothing_is_told_before_a_training_or_of_one_without_a_recipe(place, tmp_path):
    with pytest.raises(ValueError, match="fit the method"):
        ReplayedTraining(place.recipe, [0]).score(place.queries)
    said = "of which this problem tells no recipe"
    assert said in lacking("replay", None, CurvatureConfig(), has_recipe=False)
    assert lacking("replay", None, CurvatureConfig(), has_recipe=True) == ""
    with pytest.raises(ValueError, match=said):
        attribute(str(tmp_path / "audit"), Instant(), run_of(), ClusterConfig(), 1)
