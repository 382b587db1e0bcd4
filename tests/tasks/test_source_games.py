"""Sums by source and the games made of them, from a checkpoint and its base to values, against what they must be."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dataworth.storage.coalitions import CoalitionStore, UtilityStore
from dataworth.storage.compaction import compact
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.layers import LayerStore
from dataworth.storage.locations import StoreFolders
from dataworth.storage.withdrawals import Withdrawals
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from dataworth.tasks.coalitions.games import stored_vectors
from dataworth.tasks.coalitions.games.model_game import MeasuredLosses, model_sums
from dataworth.tasks.coalitions.games.newton_steps import NewtonSteps
from dataworth.tasks.coalitions.parts import GameParts
from dataworth.tasks.coalitions.steps import average_values, value_sources
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.curvature import steps as curvature_task
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.curvature.source_sums import SourceDocuments
from dataworth.tasks.curvature.steps import fit_query_factors, fit_source_sums
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.displacement import base_displacements
from dataworth.tasks.model.loading import base_weights, load
from dataworth.tasks.projection.logra import projected_weights, stored_projections
from tests.harness.pipeline import Pipeline
from tests.reference.checkpoints import save_another

SAMPLED = CurvatureConfig(draws=3, seed=5)


@pytest.fixture
def made(checkpoints, corpus_file, queries_file, tmp_path):
    """A pipeline run, by projection."""

    def make(projection, checkpoint="llama", store="store"):
        return Pipeline(tmp_path / store, checkpoints[checkpoint], corpus_file, queries_file, projection, SAMPLED)

    return make


@pytest.fixture
def base(checkpoints, tmp_path):
    """A base of the llama checkpoint: the same architecture with other weights near its own."""
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    model.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def sums_of(run, model=None, config=SAMPLED, n_groups=5):
    return fit_source_sums(
        run.store, model or run.model, run.corpus, run.bases, run.gradients, config, 96, n_groups=n_groups
    )


def parts_of(run, model, n_groups=5):
    factors = fit_query_factors(run.store, model, run.queries, run.bases, SAMPLED)
    return GameParts(
        model=model,
        queries=run.queries,
        query_gradients=run.query_gradients,
        bases=run.bases,
        sums=sums_of(run, model, n_groups=n_groups),
        factors=factors,
        corpus=run.corpus,
        gradients=run.gradients,
        curvature=run.curvature_config,
        damping=DampingConfig(),
    )


def test_sums_by_source_add_up_to_the_corpus(made):
    run = made({"kind": "random", "rank": 3})
    found = sums_of(run)
    assert list(found) == ["s0", "s1", "s2"]
    corpus, fisher = CorpusStore.open(run.corpus), LayerStore.open(run.curvature)
    rows = GradientStore.open(run.gradients).rows_of(corpus.contents)
    for name, ref in found.items():
        store = LayerStore.open(ref)
        own = [block for block, source in zip(rows, corpus.column("source").to_pylist(), strict=True) if source == name]
        gradient = np.concatenate([store.matrix(layer.name, "gradient").sum(axis=0) for layer in store.layers])
        np.testing.assert_allclose(gradient, np.concatenate(own).astype(np.float64).sum(axis=0), rtol=1e-6, atol=1e-6)
        assert store.attributes["n_examples"] == sum(map(len, own))
    for layer in fisher.layers:
        total = sum(LayerStore.open(ref).matrix(layer.name, "curvature").sum(axis=0) for ref in found.values())
        mean = fisher.matrix(layer.name, "fisher")
        np.testing.assert_allclose(total / corpus.n_examples, mean, rtol=1e-4, atol=1e-6 * np.abs(mean).max())


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_sums_by_group_add_up_to_the_same_however_many_groups(made, fraction):
    run, config = made({"kind": "random", "rank": 3}), SAMPLED.model_copy(update={"fraction": fraction})
    one, five = (sums_of(run, config=config, n_groups=n_groups) for n_groups in (1, 5))
    for name in one:
        whole, groups = LayerStore.open(one[name]), LayerStore.open(five[name])
        first = whole.layers[0].name
        counts = groups.matrix(first, "counts")
        assert counts.shape == (5,)
        assert counts.sum() == groups.attributes["n_examples"] == whole.matrix(first, "counts").sum()
        curvature_counts = groups.matrix(first, "curvature_counts")
        assert (curvature_counts <= counts).all()
        assert (curvature_counts == counts).all() == (fraction == 1)
        for layer in whole.layers:
            for matrix in ("gradient", "curvature"):
                total, parts = whole.matrix(layer.name, matrix), groups.matrix(layer.name, matrix)
                scale = np.abs(total).max()
                np.testing.assert_allclose(parts.sum(axis=0), total[0], rtol=1e-12, atol=1e-12 * scale)
                of_none = (counts if matrix == "gradient" else curvature_counts) == 0
                assert not parts[of_none].any()
                np.testing.assert_array_equal(groups.matrix(layer.name, matrix, 1), parts[1])


def test_copies_of_a_document_are_in_one_group_whatever_the_order():
    contents = np.random.default_rng(0).integers(0, 256, (12, 32), np.uint8)
    contents[7] = contents[2]
    source = SourceDocuments("a", np.arange(12), contents.view("S32")[:, 0])
    groups = source.groups(4)
    assert groups[7] == groups[2]
    assert np.bincount(np.delete(groups, 7)).tolist() == [3, 3, 3, 2]
    order = np.random.default_rng(1).permutation(12)
    moved = SourceDocuments("b", np.arange(12), source.contents[order])
    np.testing.assert_array_equal(moved.groups(4), groups[order])


def test_only_a_new_or_changed_source_is_computed(made, monkeypatch, tmp_path, corpus_file):
    run = made({"kind": "random", "rank": 2})
    summed = []
    whole = curvature_task._source_matrices

    def counted(total, source, *rest):
        summed.append(source.name)
        return whole(total, source, *rest)

    monkeypatch.setattr(curvature_task, "_source_matrices", counted)
    sums_of(run)
    assert summed == ["s0", "s1", "s2"]
    sums_of(run)
    assert summed == ["s0", "s1", "s2"]
    corpus_file.write_text(
        corpus_file.read_text() + '{"id": "new", "source": "s9", "text": "Something that is quite new here."}\n'
    )
    again = made({"kind": "random", "rank": 2})
    sums_of(again)
    assert summed == ["s0", "s1", "s2", "s9"]
    Withdrawals(again.store).add(sources=["s1"])
    compact(again.store)
    left = made({"kind": "random", "rank": 2})
    found = sums_of(left)
    assert list(found) == ["s0", "s2", "s9"]
    assert summed == ["s0", "s1", "s2", "s9"]


def test_the_way_to_the_base_is_the_step_of_nobody(made, base):
    run = made({"kind": "identity"})
    model = run.model.model_copy(update={"base": base})
    sums = model_sums(list(sums_of(run, model).values()), run.bases, model, None, DampingConfig())
    layers = load(model).layers
    names = [f"{layer.name}.weight" for layer in layers]
    away = base_displacements(layers, base_weights(model, names))
    expected = np.concatenate([amount.numpy().ravel() for amount in away])
    steps = NewtonSteps(sums.layers, sums.damping)(np.array([[False] * 3, [True] * 3]))
    np.testing.assert_allclose(steps[0], expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(steps[1], 0, atol=1e-8)
    queries = CorpusStore.open(run.queries)
    start = AutoModelForCausalLM.from_pretrained(run.model.name)
    loaded = load(model)
    before = query_losses(loaded, queries)
    moved = MeasuredLosses(model, run.bases, run.queries)(steps[:1])[0]
    with torch.no_grad():
        state = dict(start.named_parameters())
        for layer, amount in zip(layers, away, strict=True):
            state[f"{layer.name}.weight"].add_(amount)
        for number in range(queries.n_examples):
            ids = torch.from_numpy(queries.tokens(number)[None].astype("int64"))
            n_masked = int(queries.windows["n_masked"][number])
            chances = start(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
            loss = -chances.gather(1, ids[0, 1:, None])[max(n_masked - 1, 0) :].sum()
            assert moved[number] == pytest.approx(float(loss), rel=1e-4)
    np.testing.assert_array_equal(query_losses(loaded, queries), before)


@pytest.mark.parametrize(
    "projection", [{"kind": "random", "rank": 3}, {"kind": "pca", "rank": 3}, {"kind": "mask", "rank": 3}]
)
def test_coordinates_are_orthonormal(made, projection):
    run = made(projection)
    sums = model_sums(list(sums_of(run).values()), run.bases, run.model, 1.0, DampingConfig())
    (entry, *_) = stored_projections(LayerStore.open(run.bases))
    weights = torch.randn(entry.n_outputs, entry.n_inputs, generator=torch.Generator().manual_seed(0))
    stored = projected_weights(entry, weights)
    from dataworth.tasks.projection.logra import orthonormal_sides

    outputs, inputs = orthonormal_sides(entry)
    expected = (outputs @ weights.double() @ inputs.T).numpy().ravel()
    turn = sums.coordinates[0]
    np.testing.assert_allclose(stored if turn is None else stored @ turn, expected, atol=1e-5)


@pytest.mark.parametrize("game", ["interaction", "newton", "path"])
@pytest.mark.parametrize("with_base", [True, False])
def test_values_of_games(made, base, game, with_base):
    run = made({"kind": "identity"})
    model = run.model.model_copy(update={"base": base if with_base else None})
    parts, scores = parts_of(run, model), run.scores()
    config = SourcesConfig(game=game, fallback=False, pull=None if with_base else 1.0)
    found = CoalitionStore.open(value_sources(run.store, scores, config, parts))
    table = found.values.to_pandas()
    assert list(table["query_id"].drop_duplicates()) == ["q0", "q1", "*"]
    assert set(table["game"]) == {game}
    by_query = table.pivot(index="query_id", columns="source", values="value")
    np.testing.assert_allclose(by_query.loc["*"], by_query.loc[["q0", "q1"]].sum(), rtol=1e-9)
    notes = found.attributes["notes"]
    if game == "newton":
        whole = notes["v(all)"] - notes["v(none)"]
        assert by_query.loc["*"].sum() == pytest.approx(whole, rel=1e-5)
    assert found.overlap.num_rows == 3


@pytest.mark.parametrize("game", ["interaction", "newton", "path"])
def test_errors_are_there_by_their_cause_and_add_up_in_quadrature(made, base, game):
    run = made({"kind": "pca", "rank": 3})
    model, scores = run.model.model_copy(update={"base": base}), run.scores()
    config = SourcesConfig(game=game, fallback=False)
    found = CoalitionStore.open(value_sources(run.store, scores, config, parts_of(run, model)))
    table = found.values.to_pandas()
    names = ["error_coalitions", "error_documents", "error_queries"]
    np.testing.assert_allclose(np.sqrt((table[names] ** 2).sum(axis=1)), table["standard_error"], rtol=1e-12)
    assert table["error_documents"].notna().all()
    assert (table["error_queries"].notna() == (table["query_id"] == "*")).all()
    assert ((table["low"] < table["value"]) & (table["value"] < table["high"])).all()
    assert "5 groups" in found.attributes["notes"]["errors"]
    one = SourcesConfig(game=game, fallback=False, document_groups=1)
    plain = CoalitionStore.open(value_sources(run.store, scores, one, parts_of(run, model, n_groups=1)))
    without = plain.values.to_pandas()
    assert without["error_documents"].isna().all()
    if game == "newton":  # measured by float32 passes at steps that differ in their last digits
        np.testing.assert_allclose(without["value"], table["value"], rtol=1e-4, atol=1e-5)
    else:
        # The pull is the place of a minimum, which float64 tells to the root of its precision.
        np.testing.assert_allclose(without["value"], table["value"], rtol=1e-7)


def test_no_coalition_is_evaluated_twice(made, base, monkeypatch):
    run = made({"kind": "pca", "rank": 4})
    model = run.model.model_copy(update={"base": base})
    parts, scores = parts_of(run, model), run.scores()
    asked = []
    kept = UtilityStore.add
    monkeypatch.setattr(
        UtilityStore, "add", lambda self, masks, worth: asked.append(len(masks)) or kept(self, masks, worth)
    )
    values = {}
    for semivalue in ("shapley", "banzhaf", "leave_one_out"):
        config = SourcesConfig(game="newton", semivalue=semivalue, fallback=False)
        ref = value_sources(run.store, scores, config, parts)
        values[semivalue] = CoalitionStore.open(ref).values.to_pandas()["value"]
    assert sum(asked) == 8
    assert not values["shapley"].equals(values["banzhaf"])
    (game,) = StoreFolders(run.store).games.folders()
    masks, worth = UtilityStore(game).known(3, 2)
    assert masks.shape == (8, 3)
    assert np.isfinite(worth).all()


def test_an_unreliable_game_falls_back_and_says_so(made, base):
    run = made({"kind": "random", "rank": 1})
    model = run.model.model_copy(update={"base": base})
    parts, scores = parts_of(run, model), run.scores()
    found = CoalitionStore.open(value_sources(run.store, scores, SourcesConfig(game="newton"), parts))
    plain = CoalitionStore.open(value_sources(run.store, scores, SourcesConfig()))
    assert not found.attributes["notes"]["reliable"]
    assert "newton" in found.attributes["notes"]["fallback"]
    assert found.values.column("value") == plain.values.column("value")
    assert set(found.values.to_pandas()["game"]) == {"additive"}


def test_what_cannot_be_played_is_said(made, checkpoints):
    run = made({"kind": "factgrass", "rank": 2})
    with pytest.raises(InputError, match="factgrass"):
        model_sums(list(sums_of(run).values()), run.bases, run.model, 1.0, DampingConfig())
    with pytest.raises(InputError, match="--model.base: not given"):
        load(run.model, 0.5)
    other = ModelConfig(name=run.model.name, base=str(checkpoints["gpt2"]))
    with pytest.raises(InputError, match="has no parameter"):
        load(other, 0.5)


def test_worth_measured_on_a_cluster_is_the_same(made, base):
    config = SourcesConfig(game="newton", utility="evaluated", fallback=False, document_groups=1)
    values = []
    for n_workers in (1, 2):
        run = made({"kind": "pca", "rank": 3}, store=f"store of {n_workers}")
        model = run.model.model_copy(update={"base": base})
        parts = parts_of(run, model, n_groups=1)
        found = value_sources(run.store, run.scores(), config, parts, ClusterConfig(workers=n_workers))
        values.append(CoalitionStore.open(found).values.to_pandas()["value"])
    np.testing.assert_allclose(values[1], values[0], rtol=1e-4)


def test_values_in_parameters_are_found_once_for_all_queries(made, base, monkeypatch, queries_file):
    run = made({"kind": "pca", "rank": 3})
    model = run.model.model_copy(update={"base": base})
    linear = SourcesConfig(game="newton", utility="linear", fallback=False)
    first = CoalitionStore.open(value_sources(run.store, run.scores(), linear, parts_of(run, model)))
    plays = []
    monkeypatch.setattr(stored_vectors, "vector_values", lambda *_: plays.append(1))
    rows = [
        {"id": "other", "prompt": "The server", "completion": " answers on port eighty."},
        {"id": "q0", "prompt": "The river runs", "completion": " down to the sea."},
    ]
    queries_file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    later = made({"kind": "pca", "rank": 3})
    found = CoalitionStore.open(value_sources(later.store, later.scores(), linear, parts_of(later, model)))
    assert not plays
    table, before = (store.values.to_pandas().set_index(["query_id", "source"]) for store in (found, first))
    np.testing.assert_allclose(table.loc["q0", "value"], before.loc["q0", "value"], rtol=1e-6)
    assert table["error_documents"].notna().all()
    # The same as by asking for every coalition.
    parts = parts_of(later, model)
    sums = model_sums(list(parts.sums.values()), later.bases, model, None, DampingConfig())
    rows_of = GradientStore.open(later.query_gradients).rows_of(CorpusStore.open(later.queries).contents)
    gradients = sums.turned(np.concatenate(rows_of))
    masks = all_coalitions(3)
    steps = NewtonSteps(sums.layers, sums.damping, sums.largest)(masks)
    expected = exact_semivalues(masks, -steps @ gradients.T, size_weights(3, "shapley"))
    np.testing.assert_allclose(table.loc["other", "value"], expected[0], rtol=1e-6)
    Withdrawals(later.store).add(sources=["s1"])
    compact(later.store)
    kinds = [LayerStore(path).attributes.get("kind") for path in StoreFolders(later.store).layers.folders()]
    assert stored_vectors.KIND not in kinds


@pytest.mark.parametrize("with_base", [True, False])
def test_values_of_documents_along_the_path_add_up_to_their_sources(made, base, with_base):
    run = made({"kind": "pca", "rank": 3})
    model = run.model.model_copy(update={"base": base if with_base else None})
    config = SourcesConfig(game="path", fallback=False, document_values=True, pull=None if with_base else 1.0)
    found = CoalitionStore.open(value_sources(run.store, run.scores(), config, parts_of(run, model)))
    documents, table = found.documents.to_pandas(), found.values.to_pandas()
    assert sorted(documents["document_id"]) == sorted(CorpusStore.open(run.corpus).column("document_id").to_pylist())
    assert documents["value"].is_monotonic_decreasing
    whole = table[table["query_id"] == "*"].set_index("source")["value"]
    added = documents.groupby("source")["value"].sum()
    # Label gradients of other batches differ in the last digits of float32.
    np.testing.assert_allclose(added[whole.index], whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())
    by_id = documents.set_index("document_id")["value"]
    assert by_id["copy"] == pytest.approx(by_id["d0"], rel=1e-4)
    with pytest.raises(ValueError, match="document_values"):
        SourcesConfig(game="newton", document_values=True)


def test_games_of_two_checkpoints_are_averaged_with_all_they_tell(
    made, checkpoints, corpus_file, queries_file, tmp_path
):
    """Values, overlaps and the documents' values of the path: all means, and documents add up to their sources."""
    other = save_another(checkpoints["llama"], tmp_path / "other")
    first = made({"kind": "random", "rank": 3})
    second = Pipeline(tmp_path / "store", other, corpus_file, queries_file, {"kind": "random", "rank": 3}, SAMPLED)
    config = SourcesConfig(game="path", fallback=False, document_values=True, pull=1.0, document_groups=1)
    singles = [
        value_sources(run.store, run.scores(), config, parts_of(run, run.model, n_groups=1)) for run in (first, second)
    ]
    found = CoalitionStore.open(average_values(first.store, singles, 0.95, "checkpoint", first.scores()))
    one, two = (CoalitionStore.open(ref) for ref in singles)
    table = found.values.to_pandas()
    values = [store.values.to_pandas()["value"] for store in (one, two)]
    np.testing.assert_allclose(table["value"], np.mean(values, axis=0))
    np.testing.assert_allclose(table["error_checkpoint"], np.abs(values[0] - values[1]) / 2)
    overlaps = [store.overlap.to_pandas()["overlap"] for store in (one, two)]
    np.testing.assert_allclose(found.overlap.to_pandas()["overlap"], np.mean(overlaps, axis=0))
    documents = found.documents.to_pandas()
    assert documents["value"].is_monotonic_decreasing
    whole = table[table["query_id"] == "*"].set_index("source")["value"]
    added = documents.groupby("source")["value"].sum()
    np.testing.assert_allclose(added[whole.index], whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())
    notes = found.attributes["notes"]
    assert notes["checkpoints"] == 2
    assert notes["reliable"] == all(store.attributes["notes"]["reliable"] for store in (one, two))


def test_checkpoints_valued_by_different_games_are_refused(made):
    first = made({"kind": "random", "rank": 3})
    games = (SourcesConfig(), SourcesConfig(game="path", fallback=False, pull=1.0, document_groups=1))
    parts = (None, parts_of(first, first.model, n_groups=1))
    singles = [value_sources(first.store, first.scores(), *each) for each in zip(games, parts, strict=True)]
    with pytest.raises(InputError, match="^--model: the checkpoints are not valued by one game, but by additive and "):
        average_values(first.store, singles, 0.95, "checkpoint", first.scores())
