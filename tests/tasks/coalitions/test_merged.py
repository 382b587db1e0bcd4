"""Values by models merged from trained ones: near the truth with few trainings, exact with all, kept, resumed."""

from pathlib import Path

import numpy as np
import pytest

from dataworth.storage.coalitions import CoalitionStore, UtilityStore
from dataworth.storage.errors import InputError
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from dataworth.tasks.coalitions.steps import value_sources
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.model.loading import LoadedModel
from dataworth.tasks.training import merging, retraining
from tests.harness.tuned import TRAINING, parts_of, retrained, tuned


@pytest.fixture
def run(tmp_path, corpus_file, queries_file):
    """A tuned model, and its base."""
    return tuned(tmp_path, corpus_file, queries_file)


def merged(run, trainings, cluster=None, **settings):
    config = SourcesConfig(game="additive", tolerance=1e-9, trainings=trainings, **settings)
    options = {} if cluster is None else {"cluster": cluster}
    found = CoalitionStore.open(value_sources(run.store, run.scores(), config, parts_of(run), **options))
    return found, found.values.to_pandas().set_index(["query_id", "source"])


def weights_left(run):
    return [*Path(run.store).rglob("*.safetensors")]


def test_models_are_merged_where_trainings_are_enough_and_all_of_them_are_exact(run, monkeypatch):
    trained = []
    train = retraining.train
    monkeypatch.setattr(retraining, "train", lambda *arguments: trained.append(1) or train(*arguments))
    few, table = merged(run, 6)
    assert len(trained) == 6
    assert few.attributes["notes"]["estimator"] == "6 trainings, and models merged from them"
    assert len(weights_left(run)) == 6  # a seventh may come
    everybody, nobody = (few.attributes["notes"][name] for name in ("v(all)", "v(none)"))
    assert table.loc["*", "value"].sum() == pytest.approx(everybody - nobody)
    masks = all_coalitions(3)
    by_query = exact_semivalues(masks, -retrained(run)(masks), size_weights(3, "shapley"))
    truth = np.vstack([by_query, by_query.sum(axis=0)])
    names = ["q0", "q1", "*"]
    values = table["value"].unstack().loc[names].to_numpy()
    assert np.abs(values - truth).max() < 0.1 * np.abs(truth).max()
    low, high = (table[end].unstack().loc[names].to_numpy() for end in ("low", "high"))
    assert ((low <= truth) & (truth <= high)).all()
    del trained[:]
    _, table = merged(run, 41)
    assert len(trained) == 1  # what was left of one source alone
    assert weights_left(run) == []
    np.testing.assert_allclose(table["value"].unstack().loc[names], truth, rtol=1e-6)
    _, table = merged(run, 6, semivalue="banzhaf")
    assert len(trained) == 1


def test_a_stopped_merging_goes_on_where_it_was(run, monkeypatch):
    trained, measured, train, measure = [], [], retraining.train, merging.query_losses
    monkeypatch.setattr(retraining, "train", lambda *arguments: trained.append(1) or train(*arguments))

    def stopped(*arguments):
        measured.append(1)
        if len(measured) == 6:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(merging, "query_losses", stopped)
    with pytest.raises(KeyboardInterrupt):
        merged(run, 7)
    assert len(weights_left(run)) == 7
    found, _ = merged(run, 7)
    assert len(trained) == 7
    assert len(measured) == 6 + (8 - 5) + 6  # what was measured is kept
    assert found.attributes["notes"]["certified"]


def test_weights_of_trainings_come_from_workers_too(run):
    _, here = merged(run, 7)
    run.store = f"{run.store}-other"
    _, there = merged(run, 7, ClusterConfig(workers=2))
    np.testing.assert_allclose(here["value"], there["value"], rtol=1e-3, atol=1e-3)
    assert weights_left(run) == []


def test_without_memory_for_all_weights_it_is_refused(run, monkeypatch):
    monkeypatch.setattr(LoadedModel, "free_memory", 10**4)
    with pytest.raises(InputError, match="of 6 trainings needs .* GB of memory.*pass at most 3"):
        merged(run, 6)
    found, _ = merged(run, 3)
    assert found.attributes["notes"]["estimator"] == "additive, corrected by 3 trainings"


def test_everybody_and_each_alone_are_enough(run, monkeypatch):
    trained, train = [], retraining.train
    monkeypatch.setattr(retraining, "train", lambda *arguments: trained.append(1) or train(*arguments))
    found, table = merged(run, 4)
    assert len(trained) == 4
    assert found.attributes["notes"]["estimator"] == "4 trainings, and models merged from them"
    masks = all_coalitions(3)
    truth = exact_semivalues(masks, -retrained(run)(masks), size_weights(3, "shapley"))
    values = table["value"].unstack().loc[["q0", "q1"]].to_numpy()
    assert np.abs(values - truth).max() < 0.1 * np.abs(truth).max()
    assert len(weights_left(run)) == 4  # others may come
    del trained[:]
    merged(run, 7)
    assert len(trained) == 3
    assert weights_left(run) == []


def test_a_merged_model_without_a_loss_is_refused_and_not_kept(run, monkeypatch):
    measure = merging.query_losses
    monkeypatch.setattr(merging, "query_losses", lambda *given: measure(*given) * np.nan)
    with pytest.raises(InputError, match="has a loss that is no number"):
        merged(run, 6)
    monkeypatch.setattr(merging, "query_losses", measure)
    _, table = merged(run, 6)
    assert np.isfinite(table["value"]).all()


def test_weights_that_another_run_dropped_are_trained_again(run, monkeypatch):
    dropped, kept = [], UtilityStore.weights

    def weights(self, mask):
        if not dropped and mask.sum() == 1:
            dropped.append(self.drop_weights())
        return kept(self, mask)

    monkeypatch.setattr(UtilityStore, "weights", weights)
    found, _ = merged(run, 7)
    assert dropped
    assert found.attributes["notes"]["certified"]


def test_for_leaving_one_out_every_training_that_counts_is_made_and_no_other(run, monkeypatch):
    trained = []
    train = retraining.train
    monkeypatch.setattr(retraining, "train", lambda *arguments: trained.append(1) or train(*arguments))
    _, table = merged(run, 6, semivalue="leave_one_out")
    assert len(trained) == 4
    masks = np.concatenate([np.ones((1, 3), bool), ~np.eye(3, dtype=bool)])
    losses = retrained(run)(masks)
    del trained[4:]
    np.testing.assert_allclose(table["value"].unstack().loc[["q0", "q1"]], (losses[1:] - losses[0]).T, rtol=1e-6)
    assert (table["error_coalitions"] == 0).all()


def test_trainings_that_lead_elsewhere_leave_no_weights(run):
    parts = parts_of(run, TRAINING.model_copy(update={"learning_rate": 1e-6}))
    config = SourcesConfig(game="additive", trainings=7)
    found = CoalitionStore.open(value_sources(run.store, run.scores(), config, parts))
    assert found.attributes["notes"]["certified"] is False
    assert weights_left(run) == []
