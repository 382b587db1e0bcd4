"""The game merged: measured where trainings are, merged elsewhere, near the truth; kept, checked, never in the way."""

from pathlib import Path

import numpy as np
import pytest

from dataworth.storage.coalitions import CoalitionStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from dataworth.tasks.coalitions.games import merged as merged_game
from dataworth.tasks.coalitions.steps import value_sources
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.model.loading import LoadedModel, load
from dataworth.tasks.training import merging, retraining
from tests.harness.tuned import NAMES, TRAINING, parts_of, retrained, tuned

QUERIES = ["q0", "q1", "*"]


@pytest.fixture
def run(tmp_path, corpus_file, queries_file):
    """A tuned model, and its base."""
    return tuned(tmp_path, corpus_file, queries_file)


@pytest.fixture
def trained(monkeypatch):
    """Grows by one with each training."""
    counted, train = [], retraining.train
    monkeypatch.setattr(retraining, "train", lambda *arguments: counted.append(1) or train(*arguments))
    return counted


def merged(run, parts=None, cluster=None, **settings):
    config = SourcesConfig(game="merged", **settings)
    options = {} if cluster is None else {"cluster": cluster}
    found = CoalitionStore.open(value_sources(run.store, run.scores(), config, parts or parts_of(run), **options))
    table = found.values.to_pandas().set_index(["query_id", "source"])
    return found.attributes["notes"], table["value"].unstack().loc[QUERIES].to_numpy(), table


def with_base(run):
    """Parts of a game whose base is known, so that there is a total."""
    return parts_of(run).model_copy(update={"base": load(run.model, 1.0).fingerprint})


def weights_left(run):
    return [*Path(run.store).rglob("*.safetensors")]


def expected(run):
    """Utilities of all coalitions, merged by hand, and the trained truth."""
    masks, truth = all_coalitions(3), -retrained(run)(all_coalitions(3))
    model, base = load(run.model), load(run.model, 1.0)
    queries, corpus = CorpusStore.open(run.queries), CorpusStore.open(run.corpus)
    start = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    added = [{name: tensor - start[name] for name, tensor in model.model.state_dict().items()}]
    of_windows = retraining.window_players(corpus, "source", NAMES)
    for player in range(3):
        with retraining.as_it_was(base):
            retraining.train(base, corpus, np.flatnonzero(of_windows == player), TRAINING)
            added.append({name: tensor - start[name] for name, tensor in base.model.state_dict().items()})
    trained_on = np.concatenate([np.ones((1, 3), bool), np.eye(3, dtype=bool)])
    tokens = np.bincount(of_windows, corpus.windows["n_tokens"], 3)
    utilities = truth.copy()
    utilities[masks.all(axis=1)] = -query_losses(model, queries)
    for place in np.flatnonzero(masks.sum(axis=1) == 2):
        (parts,) = merging.merging_coefficients(masks[[place]], trained_on, tokens)
        weights = {
            name: start[name] + sum(float(part) * own[name] for part, own in zip(parts, added, strict=True))
            for name in start
        }
        with retraining.as_it_was(base):
            base.model.load_state_dict(weights)
            utilities[place] = -query_losses(base, queries)
    return masks, utilities, truth


def with_sum(by_query):
    return np.vstack([by_query, by_query.sum(axis=0)])


def test_what_was_trained_is_measured_and_the_rest_is_merged(run, trained):
    notes, values, table = merged(run, with_base(run))
    assert len(trained) == 3  # not everybody: that is the model
    assert weights_left(run) == []
    masks, utilities, truth = expected(run)
    weights = size_weights(3, "shapley")
    np.testing.assert_allclose(values, with_sum(exact_semivalues(masks, utilities, weights)), rtol=1e-2, atol=1e-2)
    shapley = with_sum(exact_semivalues(masks, truth, weights))
    assert np.abs(values - shapley).max() < 0.1 * np.abs(shapley).max()
    assert set(table["kind"]) == {"share"}
    assert notes["accounted for"] == pytest.approx(1)
    how = "models merged from the model and from 3 trainings on one source each; exact, as 8 coalitions are all"
    assert notes["estimator"].startswith(how)
    assert notes["reliable"]
    del trained[:]
    _, banzhaf, _ = merged(run, with_base(run), semivalue="banzhaf")
    assert trained == []
    expect = with_sum(exact_semivalues(masks, utilities, size_weights(3, "banzhaf")))
    np.testing.assert_allclose(banzhaf, expect, rtol=1e-2, atol=1e-2)


def test_coalitions_may_be_drawn_and_their_error_is_told(run):
    notes, _, table = merged(run, budget=6)
    assert notes["coalitions"] == 6
    assert (table["error_coalitions"] > 0).all()


def test_a_recipe_that_is_not_the_models_is_told_and_leaves_nothing(run):
    notes, _, table = merged(run, parts_of(run, TRAINING.model_copy(update={"learning_rate": 1e-5})))
    assert notes["fallback"].startswith("merged: trainings on each source alone, merged, go 0% of the way")
    assert set(table["game"]) == {"additive"}
    assert weights_left(run) == []


def test_without_memory_nothing_is_trained_and_it_is_told(run, trained, monkeypatch):
    monkeypatch.setattr(LoadedModel, "free_memory", 10**4)
    with pytest.raises(InputError, match="of 4 trainings needs .* GB of memory.*: value coarser sources"):
        merged(run)
    assert trained == []


def test_a_recipe_that_goes_too_far_is_told(run):
    notes, _, _ = merged(run, parts_of(run, TRAINING.model_copy(update={"learning_rate": 0.06})))
    assert "times as far from the base as the model is: set --training" in notes["fallback"]


def test_of_many_sources_none_is_trained_on_alone(run, trained, monkeypatch):
    monkeypatch.setattr(merged_game, "MAX_SOURCES", 2)
    notes, _, table = merged(run)
    assert notes["fallback"] == "merged: 3 sources are more than the 2 of which each is trained on alone"
    assert set(table["game"]) == {"additive"}
    assert trained == []


def test_a_model_that_is_its_base_was_taught_nothing(run):
    run.model = run.model.model_copy(update={"base": run.model.name})
    notes, _, _ = merged(run)
    assert notes["fallback"] == "merged: the model's weights are those of its base, so that nothing was taught"


def test_a_stopped_one_goes_on_where_it_was(run, trained, monkeypatch):
    measured, measure = [], merging.query_losses

    def stopped(*arguments):
        measured.append(1)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(merging, "query_losses", stopped)
    with pytest.raises(KeyboardInterrupt):
        merged(run)
    assert len(weights_left(run)) == 3
    merged(run)
    assert len(trained) == 3
    assert len(measured) == 3 + 1  # two of three were kept
    assert weights_left(run) == []


def test_trainings_on_workers_come_to_the_same(run):
    _, here, _ = merged(run)
    run.store = f"{run.store}-other"
    _, there, _ = merged(run, cluster=ClusterConfig(workers=2))
    np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-3)


def test_its_trainings_are_those_of_a_budget(run, trained):
    merged(run, trainings=4)
    assert len(trained) == 4  # everybody, as the recipe has it, and each alone
    assert len(weights_left(run)) == 4
    merged(run, trainings=7)
    assert len(trained) == 7
    assert weights_left(run) == []


def test_weights_do_not_stay_where_nothing_else_is_merged(run, trained):
    merged(run, trainings=3)
    assert weights_left(run) == []


def test_stored_settings_are_read_again_and_other_errors_are_refused():
    stored = SourcesConfig(game="merged").model_dump()
    assert SourcesConfig.model_validate(stored).game == "merged"
    with pytest.raises(ValueError, match="tells no errors of documents"):
        SourcesConfig(game="merged", document_groups=3)
