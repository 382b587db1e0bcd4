"""Documents that a model was not trained on: scored as documents of the corpus with the same gradients would be."""

import json

import numpy as np
import pandas as pd
import pytest

import dataworth
from dataworth.storage.compaction import compact
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.locations import location_of
from dataworth.storage.schema import ALL_QUERIES
from dataworth.storage.withdrawals import CHECKSUMS, FILE, Withdrawals
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.training import candidates
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.retraining import losses_after_training
from tests.harness.tuned import small_with_base
from tests.reference.checkpoints import TEXTS

SETTINGS = {
    "corpus": {"max_length": 24},
    "projection": {"rank": 2},
    "curvature": {"draws": 1},
    "sources": {"game": "additive"},
}
QUERIES = [{"id": f"q{n}", "prompt": TEXTS[n][:30], "completion": TEXTS[n][30:60]} for n in range(3)]
ROWS = [{"id": f"d{n}", "source": f"s{n % 3}", "text": text} for n, text in enumerate(TEXTS)]
NEW = [{"id": "n0", "source": "new", "text": "A sentence that nobody here was trained on, nor ever will be."}]
EQUAL = ["value", "low", "high", "n_documents", "n_tokens"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and the folder `base` in it."""
    return small_with_base(tmp_path_factory.mktemp("candidates") / "model")


def valued(name, store, candidates, documents=ROWS, **options):
    settings = {key: {**given, **options.pop(key, {})} for key, given in SETTINGS.items()}
    return dataworth.value(name, None, documents, QUERIES, store=store, candidates=candidates, **settings, **options)


def by_source(table):
    return table.set_index(["query_id", "source"]).sort_index()


@pytest.mark.parametrize("at", ["model", "with its base", "two checkpoints"])
def test_what_was_trained_on_is_worth_as_a_candidate_what_it_is_worth(folder, tmp_path, at):
    name = [str(folder), str(folder / "base")] if at == "two checkpoints" else str(folder)
    model = {"base": str(folder / "base")} if at == "with its base" else {}
    made = valued(name, tmp_path, ROWS, model={"device": "cpu", **model})
    sources, candidates = by_source(made.sources), by_source(made.candidates)
    assert (made.account.scaled_by is None) == (at != "with its base")
    own = EQUAL[:1] + EQUAL[3:] if at == "two checkpoints" else EQUAL  # the sources' errors know of the checkpoints
    pd.testing.assert_frame_equal(candidates[own], sources.loc[candidates.index, own], rtol=1e-5, check_dtype=False)
    assert (candidates["n_known"] == candidates["n_documents"]).all()


def test_a_part_of_the_corpus_is_scored_as_in_the_whole(folder, tmp_path):
    scoring = {"scoring": {"save_matrix": True, "top_k": 4}}
    made = valued(str(folder), tmp_path, [*ROWS[4:7], *NEW], **scoring)
    whole = made.scores.to_pandas()
    best = pd.read_parquet(made.folder / "candidate_documents.parquet")
    scored = best[(best["rank"] > 0) & (best["query_id"] != ALL_QUERIES)]
    assert len(scored) == 4 * len(QUERIES)
    for row in scored[scored["source"] != "new"].itertuples():
        np.testing.assert_allclose(row.score, whole.loc[row.query_id, row.document_id], rtol=1e-4)
    table = made.candidates
    of_all = table[table["query_id"] == ALL_QUERIES]
    assert of_all.set_index("source")["n_known"].to_dict() == {"s0": 1, "s1": 1, "s2": 1, "new": 0}
    assert of_all["value"].is_monotonic_decreasing
    np.testing.assert_allclose(of_all["nats_per_query"], of_all["value"] / len(QUERIES))
    np.testing.assert_allclose(
        of_all["nats_per_1000_tokens"], 1000 * of_all["value"] / len(QUERIES) / of_all["n_tokens"]
    )
    page = (made.folder / "report.html").read_text()
    assert "What would be worth adding" in page
    assert "3 of the documents have texts that the model was trained on already" in page
    record = json.loads((made.folder / "valuation.json").read_text())
    assert record["parameters"]["candidates"]["files"]


def test_candidates_change_nothing_else(folder, tmp_path):
    with_them, without = (valued(str(folder), tmp_path / name, new) for name, new in (("a", NEW), ("b", None)))
    pd.testing.assert_frame_equal(with_them.sources, without.sources)
    assert not (without.folder / "candidates.parquet").exists()
    assert "What would be worth adding" not in (without.folder / "report.html").read_text()
    with pytest.raises(InputError, match="no candidates were given"):
        without.candidates  # noqa: B018


def test_candidates_are_grouped_as_the_corpus_is(folder, tmp_path):
    rows, new = (
        [{**row, "publisher": f"p{n % 2}"} for n, row in enumerate(given)] for given in (ROWS, [*NEW, *ROWS[:2]])
    )
    made = valued(str(folder), tmp_path, new, rows, sources={"by": ["publisher>source", "source"]})
    assert set(made.candidates["source"]) == {"p0 > new", "p1 > s0", "p0 > s1"}


def test_without_a_curvature_they_have_no_unit(folder, tmp_path):
    made = valued(str(folder), tmp_path, NEW, curvature={"kind": "none"})
    assert made.candidates["nats_per_query"].isna().all()
    assert "in scores without a unit" in (made.folder / "report.html").read_text()


@pytest.mark.parametrize(
    "options",
    [{"method": "replay", "model": {"base": "b"}}, {"scoring": {"kind": "cosine"}}, {"scoring": {"kind": "relative"}}],
    ids=str,
)
def test_what_only_a_training_or_no_unit_tells_of_candidates_is_refused(folder, tmp_path, options):
    with pytest.raises(InputError, match="what documents would add is told by the model's gradients, as dot"):
        valued(str(folder), tmp_path, NEW, **options)


def test_what_they_teach_is_measured_by_training_on_each_source_alone(folder, tmp_path):
    asked = "".join(QUERIES[0][part] for part in ("prompt", "completion"))
    new = [*NEW, {"id": "n1", "source": "asked", "text": asked}]
    training = {"learning_rate": 2e-3, "batch_tokens": 64, "seed": 3}
    given = {"files": new, "epochs": 2}
    made = valued(str(folder), tmp_path, given, training=training, model={"device": "cpu"})
    table = made.candidates
    model, corpus = ModelConfig(name=str(folder), device="cpu"), made.parts.candidates.corpus
    documents, queries = CorpusStore.open(corpus), CorpusStore.open(made.parts.queries)
    before = query_losses(load(model), queries)
    sources = np.array(documents.column("source").to_pylist())[documents.windows["document"]]
    recipe = TrainingConfig(**training, epochs=2)
    for source in ("new", "asked"):
        windows = np.flatnonzero(sources == source)
        after = losses_after_training(load(model), documents, windows, queries, recipe)
        own = table[table["source"] == source].set_index("query_id")["measured"]
        np.testing.assert_allclose(own.drop(ALL_QUERIES), before - after, atol=1e-4)
        np.testing.assert_allclose(own[ALL_QUERIES], (before - after).sum(), atol=1e-4)
    of_all = table[table["query_id"] == ALL_QUERIES].reset_index()
    assert of_all["measured"].is_monotonic_decreasing
    np.testing.assert_allclose(query_losses(load(model), queries), before, atol=1e-6)  # it is as it was
    assert "2 passes over them" in (made.folder / "report.html").read_text()


def test_a_training_that_ends_in_no_number_is_named_and_not_kept(folder, tmp_path):
    given = {"files": NEW, "epochs": 3}
    with pytest.raises(InputError, match=r"trained on 'new' the model ends with losses that are no numbers: lower"):
        valued(
            str(folder),
            tmp_path,
            given,
            training={"learning_rate": 10.0, "batch_tokens": 16},
            model={"dtype": "float16"},
        )
    made = valued(str(folder), tmp_path, given, training={"learning_rate": 1e-3})
    assert made.candidates["measured"].notna().all()


def test_a_stopped_measurement_goes_on_at_the_source_it_was_at(folder, tmp_path, monkeypatch):
    given = {"files": [{"id": f"n{n}", "source": f"new {n}", "text": f"A text of number {n}."} for n in range(3)]}
    trained = []

    def stopping(*arguments):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(arguments[2])
        return losses_after_training(*arguments)

    monkeypatch.setattr(candidates, "losses_after_training", stopping)
    with pytest.raises(KeyboardInterrupt):
        valued(str(folder), tmp_path, {**given, "epochs": 1})
    counted = []
    monkeypatch.setattr(
        candidates, "losses_after_training", lambda *each: counted.append(each) or losses_after_training(*each)
    )
    made = valued(str(folder), tmp_path, {**given, "epochs": 1})
    assert len(counted) == 1
    straight = valued(str(folder), tmp_path / "straight", {**given, "epochs": 1})
    pd.testing.assert_frame_equal(made.candidates, straight.candidates, rtol=1e-5)


def test_nothing_of_a_withdrawn_candidate_stays(folder, tmp_path):
    given = {"files": [*NEW, {"id": "n1", "source": "other", "text": "Another text that is nobody else's, and stays."}]}
    valued(str(folder), tmp_path, {**given, "epochs": 1})
    Withdrawals(tmp_path).add(sources=["new"])
    compact(location_of(tmp_path))
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in (FILE, CHECKSUMS)]
    stores = [path for path in kept if "receipts" not in path.parts]
    assert len(stores) > 10
    assert [
        path for path in stores if b'"new"' in path.read_bytes() or b"nobody here was trained on" in path.read_bytes()
    ] == []
    again = valued(str(folder), tmp_path, {**given, "epochs": 1})
    assert set(again.candidates["source"]) == {"other"}


def test_candidates_may_come_from_a_generator_or_be_none(folder, tmp_path):
    made = valued(str(folder), tmp_path, (row for row in NEW))
    assert set(made.candidates["source"]) == {"new"}
    assert not (valued(str(folder), tmp_path, []).folder / "candidates.parquet").exists()
    with pytest.raises(InputError, match="candidates: int; expected a list of dicts"):
        valued(str(folder), tmp_path, 5)


def test_passes_are_of_candidates(folder, tmp_path):
    with pytest.raises(InputError, match="`candidates.epochs`: are of documents to train on: pass `candidates.files`"):
        valued(str(folder), tmp_path, {"files": [], "epochs": 1})
