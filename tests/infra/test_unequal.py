"""The truth that tells methods apart: its corpus, its noise floor, its trainings, and what was measured and kept."""

import re
from dataclasses import replace

import numpy as np
import pytest

from dataworth.tasks.coalitions.estimation.surrogates import EnumeratedSurrogate, LinearSurrogate
from tests.bench.truth import KEPT, groups_of, measured_values, model_free, scaling_law, truth_row, truth_values
from tests.bench.truth_budget import budget
from tests.reference.coalition_trainings import BATCH, SETTINGS, Cell, Problem, Trainings, canonical, seeds_of
from tests.reference.noise_floor import rank_ceiling, share_error, share_floor
from tests.reference.unequal import MASKS, RECIPES, SIZES, SOURCES, changed_words, unequal

SEEDS = 3


@pytest.fixture(scope="module", params=list(RECIPES))
def corpus(request):
    return unequal(RECIPES[request.param])


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    made = unequal(RECIPES["unequal"])
    return Problem(replace(made, general=made.general[:60]), tmp_path_factory.mktemp("problem"))


def texts(corpus, source):
    return [row["text"] for row in corpus.of(source)]


def test_sources_are_what_they_are_called(corpus):
    assert {source: len(corpus.of(source)) for source in SOURCES} == SIZES
    assert max(SIZES.values()) == 16 * min(SIZES.values())
    assert len({row["id"] for row in corpus.documents}) == len(corpus.documents)
    short = texts(corpus, "short")
    assert texts(corpus, "copy") == short
    assert 0.01 <= changed_words(short, texts(corpus, "near copy")) <= 0.02
    known = [text.split() for text in [*short, *texts(corpus, "long")]]
    for text in texts(corpus, "contradicting"):
        apart = [sum(one != two for one, two in zip(text.split(), each, strict=False)) for each in known]
        assert min(apart) >= 1, text
    alone = {source: set(texts(corpus, source)) for source in SOURCES if source not in ("copy", "near copy")}
    assert sum(map(len, alone.values())) == len(set().union(*alone.values()))


def test_queries_are_nobodys_document_and_what_a_base_reads_is_no_package_of_theirs(corpus):
    def plain(text):
        return re.sub(r"\W+", " ", text.lower()).strip()

    assert [(groups_of(corpus) == one).sum() for one in ("long", "short", "tiny", "shuffled")] == [6] * 4
    documents = {plain(row["text"]) for row in corpus.documents}
    asked = {plain(row["prompt"] + row["completion"]) for row in corpus.queries}
    assert len(asked) == len(corpus.queries)
    general = set(map(plain, corpus.general))
    shared = len(asked & documents), len(asked & general)
    assert shared == (0, 0)
    assert len(documents & general) <= 1  # a sentence that two packages have in common


def test_a_copy_without_its_original_is_trained_on_as_the_original(problem):
    short, copy = (np.array([source == one for source in SOURCES]) for one in ("short", "copy"))
    assert (canonical(copy) == short).all()
    assert (canonical(short | copy) == short | copy).all()
    assert len({canonical(mask).tobytes() for mask in MASKS}) == 192
    cell = Cell("fine-tuned", "epochs", 0)
    for one, two in zip(problem.batches(cell, copy), problem.batches(cell, short), strict=True):
        np.testing.assert_array_equal(one, two)


def test_counterfactuals_make_fewer_steps_or_as_many_as_everybody(problem):
    epochs = SETTINGS["LoRA"].epochs
    few, everybody = np.isin(SOURCES, ["short", "tiny"]), np.ones(len(SOURCES), bool)
    fewer, same = (Cell("LoRA", name, 0) for name in ("epochs", "steps"))
    assert len(problem.batches(fewer, few)) == epochs * -(-25 // BATCH)
    whole = [problem.batches(cell, everybody) for cell in (fewer, same)]
    assert len(problem.batches(same, few)) == len(whole[0]) == len(whole[1])
    assert problem.batches(same, ~everybody) == []
    assert np.concatenate(whole[0][: len(whole[0]) // epochs]).size == len(problem.corpus.documents)
    first = np.concatenate(problem.batches(fewer, few)[: -(-25 // BATCH)])
    among = np.concatenate(whole[0][: len(whole[0]) // epochs])
    np.testing.assert_array_equal(first, among[np.isin(among, first)])  # in the same order, whoever else is there
    assert not np.array_equal(whole[0][0], problem.batches(replace(fewer, seed=1), everybody)[0])


def test_what_is_kept_is_read_again(problem, tmp_path):
    losses = {"LoRA, steps": np.random.default_rng(0).random((3, 4, 5), np.float32)}
    Trainings(problem.corpus, losses).save(tmp_path / "kept.npz", "print")
    again = Trainings.open(tmp_path / "kept.npz")
    same = again.corpus == problem.corpus
    assert same
    np.testing.assert_array_equal(again.losses["LoRA, steps"], losses["LoRA, steps"])
    assert Trainings.fingerprint(tmp_path / "kept.npz") == "print"
    assert Trainings.fingerprint(tmp_path / "none.npz") is None


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_the_floor_is_the_error_of_a_mean_of_seeds(noise):
    generator = np.random.default_rng(0)
    values = np.array([8.0, 3.0, 3.0, 2.0, 1.5, 1.0, 0.5, -2.0])
    told, true, ceilings, ranks = [], [], [], []
    for _ in range(400):
        by_seed = values + noise * 8 * generator.standard_normal((SEEDS, len(values)))
        told.append(share_floor(by_seed))
        true.append(share_error(by_seed.mean(axis=0), values))
        ceilings.append(rank_ceiling(by_seed))
        ranks.append(np.corrcoef(by_seed.mean(axis=0).argsort().argsort(), values.argsort().argsort())[0, 1])
    assert np.mean(told) == pytest.approx(np.mean(true), rel=0.1)
    assert np.mean(ceilings) == pytest.approx(np.mean(ranks), abs=0.03)


def test_a_scaling_law_is_fitted_where_there_is_one():
    tokens = np.array([160.0, 40.0, 40.0, 40.0, 10.0, 80.0, 80.0, 40.0])
    utilities = np.stack([3 + 2 * np.log1p(MASKS @ tokens / 50), 1 - np.log1p(MASKS @ tokens / 50)], axis=1)
    values, everybody = scaling_law(tokens, utilities), utilities[MASKS.all(axis=1)][0]
    assert values.sum(axis=1) == pytest.approx(everybody - [3, 1], rel=0.02)
    assert values[0] == pytest.approx(-2 * values[1], rel=1e-6)


@pytest.fixture(scope="module")
def kept():
    return Trainings.open(KEPT / "unequal.npz")


def tokens_of(corpus):
    """Words are near enough."""
    return np.array([sum(len(text.split()) for text in texts(corpus, source)) for source in SOURCES], np.float64)


def test_seeds_agree_on_every_table_that_is_kept(kept):
    for table, losses in kept.losses.items():
        seeds = seeds_of(*table.split(", "))
        assert losses.shape == (len(seeds), len(MASKS), len(kept.corpus.queries))
        assert losses.dtype == np.float32
        row = truth_row(losses, groups_of(kept.corpus))
        assert row["floor"] <= 0.03, (table, row)
        assert row["rank ceiling"] >= 0.9, (table, row)
        values = truth_values(losses)
        whole = losses[:, ~MASKS.any(axis=1)] - losses[:, MASKS.all(axis=1)]
        np.testing.assert_allclose(values.sum(axis=2), whole[:, 0], rtol=1e-4, atol=1e-3)


def test_the_kept_truth_tells_methods_apart(kept):
    """Fine-tuned, epochs: counting tokens leaves 0.28 of the shares, similar words 0.10, where seeds leave 0.005."""
    losses, tokens = kept.losses["fine-tuned, epochs"], tokens_of(kept.corpus)
    groups = groups_of(kept.corpus)
    row, truth = truth_row(losses, groups), truth_values(losses).mean(axis=0)
    assert row["floor"] <= 0.01
    assert row["loss taken off"] >= 0.1
    found = model_free(kept.corpus, tokens, losses) | measured_values(losses)
    errors = {name: share_error(values.sum(axis=0), truth.sum(axis=0)) for name, values in found.items()}
    assert errors["tokens"] >= 0.2
    assert errors["Shapley of g(tokens)"] >= 0.2
    assert errors["BM25"] <= 0.5 * errors["tokens"]
    assert row["shares"]["tiny"] >= 5 * tokens[SOURCES.index("tiny")] / tokens.sum()
    assert row["nats"]["elsewhere"] < 0 < row["nats"]["contradicting"] < row["nats"]["short"]
    assert row["nats"]["copy"] == row["nats"]["short"]
    for source in ("long", "short", "tiny", "shuffled"):  # each teaches its own package's queries most
        own = truth[groups == source].sum(axis=0)
        assert own[SOURCES.index(source)] >= 0.97 * own.max()


@pytest.mark.slow
def test_surrogates_are_worth_trainings_and_intervals_hold_the_value(kept):
    """Without a model: tokens, their logarithm, similar words."""
    utilities = -kept.losses["fine-tuned, epochs"].mean(axis=0).astype(np.float64)
    tokens, n_queries = tokens_of(kept.corpus), utilities.shape[1]
    likeness = model_free(kept.corpus, tokens, -utilities[None])["BM25"]
    logs = np.log(np.maximum(MASKS @ tokens, 1.0))
    surrogates = [
        LinearSurrogate(np.tile(tokens / tokens.sum(), (n_queries, 1))),
        LinearSurrogate(likeness),
        EnumeratedSurrogate(np.tile(logs[:, None], n_queries)),
    ]
    with_them, without = budget(utilities, 32, surrogates), budget(utilities, 32, [])
    assert with_them["share error"] <= 0.8 * without["share error"]
    assert 0.8 <= with_them["coverage"] <= 0.98
    assert 0.8 <= without["coverage"] <= 0.98
