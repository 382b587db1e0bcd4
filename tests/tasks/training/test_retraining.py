"""The game retrain: coalitions trained again from the base, against the trainer that made the model."""

from collections import Counter

import numpy as np
import pytest

from dataworth.storage.coalitions import CoalitionStore
from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.coalitions import merged
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from dataworth.tasks.coalitions.steps import value_sources
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.model.loading import load
from dataworth.tasks.training import retraining
from tests.harness.tuned import TRAINING, parts_of, retrained, tuned


@pytest.fixture
def run(tmp_path, corpus_file, queries_file):
    """A tuned model, and its base."""
    return tuned(tmp_path, corpus_file, queries_file)


def test_training_again_on_everything_ends_at_the_model_and_on_nothing_at_the_base(run):
    queries = CorpusStore.open(run.queries)
    trained, base = query_losses(load(run.model), queries), query_losses(load(run.model, 1.0), queries)
    assert (base - trained).sum() > 1
    nobody, everybody = retrained(run)(np.array([[False] * 3, [True] * 3]))
    np.testing.assert_allclose(nobody, base, rtol=1e-6)
    np.testing.assert_allclose(everybody, trained, rtol=1e-4)
    # What was trained is undone.
    np.testing.assert_array_equal(query_losses(load(run.model, 1.0), queries), base)


def test_values_are_the_exact_semivalues_of_the_trainings_and_nothing_is_trained_twice(run, monkeypatch):
    trained = Counter()
    train = retraining.train

    def counted(loaded, corpus, windows, training):
        trained[windows.tobytes()] += 1
        return train(loaded, corpus, windows, training)

    masks = all_coalitions(3)
    worth = -retrained(run)(masks)
    monkeypatch.setattr(retraining, "train", counted)
    config = SourcesConfig(game="retrain")
    found = CoalitionStore.open(value_sources(run.store, run.scores(), config, parts_of(run)))
    assert len(trained) == trained.total() == 8
    by_query = found.values.to_pandas().pivot(index="query_id", columns="source", values="value")
    expected = exact_semivalues(masks, worth, size_weights(3, "shapley"))
    np.testing.assert_allclose(by_query.loc[["q0", "q1"]], expected, rtol=1e-9)
    np.testing.assert_allclose(by_query.loc["*"], expected.sum(axis=0), rtol=1e-9)
    notes = found.attributes["notes"]
    assert notes["reliable"]
    assert notes["reach"] == pytest.approx(1, abs=1e-3)
    assert by_query.loc["*"].sum() == pytest.approx(notes["v(all)"] - notes["v(none)"])
    banzhaf = config.model_copy(update={"semivalue": "banzhaf"})
    other = CoalitionStore.open(value_sources(run.store, run.scores(), banzhaf, parts_of(run)))
    assert other.values.column("value") != found.values.column("value")
    assert trained.total() == 8


def test_a_stopped_run_goes_on_after_the_last_training(run, monkeypatch):
    done = []
    train = retraining.train

    def stopped(*arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return train(*arguments)

    config, scores = SourcesConfig(game="retrain"), run.scores()
    monkeypatch.setattr(retraining, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        value_sources(run.store, scores, config, parts_of(run))
    monkeypatch.setattr(retraining, "train", lambda *arguments: done.append(1) or train(*arguments))
    value_sources(run.store, scores, config, parts_of(run))
    assert len(done) == 8


def test_workers_of_a_cluster_come_to_the_same(run):
    config, scores = SourcesConfig(game="retrain"), run.scores()
    two = value_sources(run.store, scores, config, parts_of(run), ClusterConfig(workers=2))
    found = CoalitionStore.open(two).values.to_pandas().pivot(index="query_id", columns="source", values="value")
    masks = all_coalitions(3)
    expected = exact_semivalues(masks, -retrained(run)(masks), size_weights(3, "shapley"))
    np.testing.assert_allclose(found.loc[["q0", "q1"]], expected, rtol=1e-4, atol=1e-4)


def test_training_that_leads_elsewhere_falls_back_and_says_so(run, caplog):
    slow = TRAINING.model_copy(update={"learning_rate": 1e-6})
    found = CoalitionStore.open(
        value_sources(run.store, run.scores(), SourcesConfig(game="retrain"), parts_of(run, slow))
    )
    notes = found.attributes["notes"]
    assert not notes["reliable"]
    assert "--training" in notes["fallback"]
    assert set(found.values.to_pandas()["game"]) == {"additive"}


def test_a_few_trainings_correct_the_values_of_a_game_and_more_go_on_from_them(run, monkeypatch):
    trained = []
    train = retraining.train
    monkeypatch.setattr(retraining, "train", lambda *arguments: trained.append(1) or train(*arguments))
    monkeypatch.setattr(merged, "MAX_SOURCES", 2)  # so that nothing is merged, as of many sources
    parts, scores = parts_of(run), run.scores()

    def valued(**settings):
        config = SourcesConfig(game="additive", tolerance=1e-9, **settings)
        return CoalitionStore.open(value_sources(run.store, scores, config, parts))

    few = valued(trainings=3)
    assert len(trained) == 3
    assert few.attributes["notes"]["certified"]
    table = few.values.to_pandas().set_index(["query_id", "source"])
    assert set(table["game"]) == {"retrain"}
    everybody, nobody = (few.attributes["notes"][name] for name in ("v(all)", "v(none)"))
    assert table.loc["*", "value"].sum() == pytest.approx(everybody - nobody)
    more = valued(trainings=5).values.to_pandas().set_index(["query_id", "source"])
    assert len(trained) == 5
    exact = CoalitionStore.open(value_sources(run.store, scores, SourcesConfig(game="retrain"), parts))
    assert len(trained) == 8  # with nobody, whose training has no step
    truth = exact.values.to_pandas().set_index(["query_id", "source"])["value"]
    assert (more["error_coalitions"] > 0).all()
    assert ((more["low"] <= truth) & (truth <= more["high"])).mean() > 0.7


def test_trainings_that_lead_elsewhere_correct_nothing(run):
    parts = parts_of(run, TRAINING.model_copy(update={"learning_rate": 1e-6}))
    config = SourcesConfig(game="additive", trainings=5)
    found = CoalitionStore.open(value_sources(run.store, run.scores(), config, parts))
    assert found.attributes["notes"]["certified"] is False
    assert "of the way from the base" in found.attributes["notes"]["not corrected"]
