"""The game retrain: coalitions trained again from the base, against the trainer that made the model."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as unpacked

from dataworth.storage.coalitions import CoalitionStore, UtilityStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.tasks.coalitions import merged as merged_models
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from dataworth.tasks.coalitions.parts import GameParts
from dataworth.tasks.coalitions.steps import value_sources
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.training import merging, retraining
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.retraining import Retrained
from dataworth.tasks.training.small_model import SmallModel, train_language_model
from tests.harness.pipeline import Pipeline
from tests.reference.checkpoints import TEXTS

TRAINING = TrainingConfig(epochs=3, batch_tokens=128, learning_rate=6e-3, weight_decay=0.1, seed=4)
SMALL = SmallModel(
    vocabulary=300,
    hidden=16,
    layers=1,
    heads=2,
    intermediate=24,
    positions=24,
    **{name: getattr(TRAINING, name) for name in TrainingConfig.model_fields},
)
NAMES = ("s0", "s1", "s2")


@pytest.fixture
def run(tmp_path, corpus_file, queries_file):
    """A model that train_language_model trained on the texts of the corpus, and its base."""
    texts = [*TEXTS[:10], TEXTS[0], " ".join(TEXTS)]
    train_language_model(texts, tmp_path / "model", SMALL, lambda *_: None)
    made = Pipeline(
        tmp_path / "store",
        tmp_path / "model",
        corpus_file,
        queries_file,
        {"kind": "random", "rank": 2},
        CurvatureConfig(draws=1),
    )
    made.model = made.model.model_copy(update={"base": str(tmp_path / "model" / "base")})
    return made


def parts_of(run, training=TRAINING):
    return GameParts(
        model=run.model,
        queries=run.queries,
        query_gradients=run.query_gradients,
        bases=run.bases,
        sums={},
        factors=None,
        damping=DampingConfig(),
        corpus=run.corpus,
        gradients=run.gradients,
        curvature=run.curvature_config,
        training=training,
    )


def retrained(run):
    return Retrained(run.model, run.corpus, run.queries, "source", NAMES, TRAINING)


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
    assert len(measured) == 6 + (8 - 4) + 6  # four models at a time are kept
    assert found.attributes["notes"]["certified"]


def test_weights_of_trainings_come_from_workers_too(run):
    _, here = merged(run, 7)
    run.store = f"{run.store}-other"
    _, there = merged(run, 7, ClusterConfig(workers=2))
    np.testing.assert_allclose(here["value"], there["value"], rtol=1e-3, atol=1e-3)
    assert weights_left(run) == []


def test_without_memory_for_all_weights_it_is_refused(run, monkeypatch):
    monkeypatch.setattr(merged_models, "bytes_of_merging", lambda *_: 10**15)
    with pytest.raises(InputError, match="of 6 trainings needs 1000000 GB of memory.*pass at most 5"):
        merged(run, 6)
    found, _ = merged(run, 5)
    assert found.attributes["notes"]["estimator"] == "additive, corrected by 5 trainings"


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
    found = {}
    merging.merged_losses(
        base,
        differences,
        coefficients,
        queries,
        lambda numbers, losses: found.update(zip(numbers, losses, strict=True)),
    )
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


def test_trainings_that_lead_elsewhere_correct_nothing(run):
    parts = parts_of(run, TRAINING.model_copy(update={"learning_rate": 1e-6}))
    config = SourcesConfig(game="additive", trainings=5)
    found = CoalitionStore.open(value_sources(run.store, run.scores(), config, parts))
    assert found.attributes["notes"]["certified"] is False
    assert "of the way from the base" in found.attributes["notes"]["not corrected"]
