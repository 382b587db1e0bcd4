"""What the numbers of a valuation are: their unit, their total, and a certificate of removals that were measured."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import dataworth
from dataworth.storage.coalitions import UtilityStore
from dataworth.storage.errors import InputError
from dataworth.storage.schema import ALL_QUERIES
from dataworth.tasks.counterfactual.certificate import Certificate
from dataworth.tasks.report.account import Account
from dataworth.tasks.report.results.folder import read_account, read_record
from dataworth.tasks.report.steps import calibrated
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.small_model import SmallModel, train_language_model
from tests.reference.checkpoints import TEXTS

TRAINING = TrainingConfig(epochs=3, batch_tokens=128, learning_rate=6e-3, weight_decay=0.1, seed=4)
SIZE = {"vocabulary": 300, "hidden": 16, "layers": 1, "heads": 2, "intermediate": 24, "positions": 48}
SETTINGS = {
    "corpus": {"max_length": 24},
    "projection": {"rank": 2},
    "curvature": {"draws": 1},
    "training": TRAINING.model_dump(),
}
QUERIES = [{"id": f"q{n}", "prompt": TEXTS[n][:30], "completion": TEXTS[n][30:60]} for n in range(3)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model, with its base inside, and the documents it was trained on."""
    folder = tmp_path_factory.mktemp("units") / "model"
    settings = SmallModel(**SIZE, **TRAINING.model_dump())
    train_language_model(TEXTS, folder, settings, lambda *_: None)
    rows = [{"id": f"d{n}", "source": f"s{n % 3}", "text": text} for n, text in enumerate(TEXTS)]
    return folder, rows


@pytest.fixture(scope="module")
def certified(trained, tmp_path_factory):
    """A valuation with a certificate, and its store."""
    folder, rows = trained
    store = tmp_path_factory.mktemp("certified")
    model = {"base": str(folder / "base"), "device": "cpu"}
    return dataworth.value(str(folder), None, rows, QUERIES, store=store, model=model, certify=9, **SETTINGS), store


def test_without_a_base_values_are_marginal_and_have_no_total(trained):
    folder, rows = trained
    made = dataworth.value(str(folder), None, rows, QUERIES, **SETTINGS)
    table = made.sources
    assert set(table["kind"]) == {"marginal"}
    assert table["total"].isna().all()
    taught, said = made.account.sentences()
    assert "as no base is named" in taught
    assert "no shares of what was taught; not certified" in said
    assert repr(made).startswith("The model loses")
    page = (made.folder / "report.html").read_text()
    assert "of positive values" in page
    assert "of what was taught</th>" not in page


def test_values_stand_beside_their_units(certified):
    made, _ = certified
    table, record = made.sources, read_record(str(made.folder))
    counts = {query["id"]: 0 for query in QUERIES}
    assert record["account"]["n_queries"] == len(counts)
    whole, each = table[table["query_id"] == ALL_QUERIES], table[table["query_id"] != ALL_QUERIES]
    np.testing.assert_allclose(whole["nats_per_query"], whole["value"] / len(counts))
    np.testing.assert_allclose(each["nats_per_query"], each["value"])
    np.testing.assert_allclose(whole["nats_per_token"], whole["value"] / record["account"]["n_targets"])
    sums = each.groupby("source")["value"].sum()
    np.testing.assert_allclose(whole.set_index("source")["value"], sums, rtol=1e-5)


def test_the_total_is_what_training_took_off_the_queries(certified, trained):
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    made, _ = certified
    folder, _ = trained
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    losses = []
    for name in (folder / "base", folder):
        model, total = LlamaForCausalLM.from_pretrained(name).eval(), 0.0
        for query in QUERIES:
            text = tokenizer(query["prompt"] + query["completion"], return_offsets_mapping=True)
            ids = torch.tensor([text["input_ids"]])
            of_prompt = [end <= len(query["prompt"]) for _, end in text["offset_mapping"]]
            labels = ids.masked_fill(torch.tensor([of_prompt]), -100)
            total += float(model(input_ids=ids, labels=labels).loss.detach()) * int((labels != -100).sum())
        losses.append(total)
    taken = losses[0] - losses[1]
    table = made.sources
    assert table.loc[table["query_id"] == ALL_QUERIES, "total"].to_list() == pytest.approx([taken] * 3, rel=1e-4)
    account = made.account
    assert account.total == pytest.approx(taken, rel=1e-4)
    assert account.model == pytest.approx(losses[1], rel=1e-4)
    assert "Training took" in account.sentences()[0]


def test_a_game_from_the_base_gives_shares_and_says_how_much_they_account_for(trained):
    folder, rows = trained
    model = {"base": str(folder / "base"), "device": "cpu"}
    sources = {"game": "newton", "utility": "quadratic", "fallback": False}
    made = dataworth.value(str(folder), None, rows, QUERIES, model=model, sources=sources, **SETTINGS)
    account = made.account
    assert account.kind == "share"
    whole = made.sources[made.sources["query_id"] == ALL_QUERIES]
    assert account.values == pytest.approx(whole["value"].sum())
    said = account.sentences()[1]
    assert "They account for" in said
    assert "as the game predicts it; not certified" in said
    assert "<th>of what was taught</th>" in (made.folder / "report.html").read_text()
    sources = {"game": "retrain", "fallback": False}
    truth = dataworth.value(str(folder), None, rows, QUERIES, model=model, sources=sources, **SETTINGS)
    assert truth.account.kind == "certified"
    # Training again on everything, in another order, does not come to the very same losses.
    assert truth.account.values == pytest.approx(truth.account.total, rel=0.1)
    assert "Without a source the others would have been read as often as now" in truth.account.sentences()[1]


def test_the_ledger_shares_the_whole_of_what_was_taught(trained):
    folder, rows = trained
    model = {"base": str(folder / "base"), "device": "cpu"}
    copied = [*rows, *({**row, "id": f"{row['id']} again", "source": "copy"} for row in rows if row["source"] == "s1")]
    sources = {"game": "ledger", "fallback": False}
    made = dataworth.value(str(folder), None, copied, QUERIES, model=model, sources=sources, **SETTINGS)
    account, notes = made.account, read_record(str(made.folder))["game"]
    assert account.kind == "share"
    assert abs(notes["missed by the ledger"]) < 0.01
    fall = notes["v(all)"] - notes["v(none)"]
    assert account.values + notes["credited to weight decay"] == pytest.approx(fall, rel=0.01)
    whole = made.sources[made.sources["query_id"] == ALL_QUERIES].set_index("source")
    assert whole["share"].sum() == pytest.approx(1)
    assert sum(account.part_of(value, None) for value in whole["value"]) == pytest.approx(
        account.values / account.total
    )
    assert whole.loc["copy", "value"] == pytest.approx(whole.loc["s1", "value"], rel=0.2)
    assert "as the ledger of one training has it" in account.sentences()[1]


def test_doses_share_the_whole_and_a_split_changes_nothing(trained):
    folder, rows = trained
    model = {"base": str(folder / "base"), "device": "cpu"}
    split = [{**row, "source": "s1b"} if row["id"] in ("d1", "d7") else row for row in rows]
    sources = {"game": "dose", "fallback": False, "document_values": True}
    made, apart = (
        dataworth.value(str(folder), None, each, QUERIES, model=model, sources=sources, **SETTINGS)
        for each in (rows, split)
    )
    account, notes = made.account, read_record(str(made.folder))["game"]
    assert account.kind == "share"
    assert "as the training in growing doses of everybody has it" in account.sentences()[1]
    assert abs(notes["missed by the doses"]) < 0.1
    fall = notes["v(all)"] - notes["v(none)"]
    assert account.values == pytest.approx(fall * (1 - notes["missed by the doses"]), rel=1e-6)
    whole, parts = (
        each.sources[each.sources["query_id"] == ALL_QUERIES].set_index("source")["value"] for each in (made, apart)
    )
    assert parts["s1"] + parts["s1b"] == pytest.approx(whole["s1"], rel=1e-6)
    assert parts["s2"] == pytest.approx(whole["s2"], rel=1e-6)
    table = pd.read_parquet(made.folder / "document_values.parquet")
    pd.testing.assert_series_equal(
        table.groupby("source")["value"].sum(), whole, check_names=False, check_like=True, rtol=1e-5
    )
    assert len(table) == len(rows)


def test_scores_without_a_unit_are_called_so(trained):
    folder, rows = trained
    made = dataworth.value(str(folder), None, rows, QUERIES, scoring={"kind": "cosine"}, **SETTINGS)
    assert made.account.unit == "value a query"
    assert made.sources[["nats_per_query", "nats_per_token"]].isna().all().all()
    assert "no unit" in made.account.sentences()[1]


def test_a_certificate_is_in_everything_that_is_left(certified):
    made, _ = certified
    record = read_record(str(made.folder))
    facts = record["certificate"]
    assert facts["removals"] == 9
    assert facts["within"] > 0
    # Every removal here leaves a step or two out, which tells more than the scores do.
    assert facts["explained by size"] > 0.3
    assert made.account.sentences()[2] == facts["verdict"]
    assert facts["believed"] == ("calibrated" in made.sources)
    assert ("not certified" in made.account.sentences()[1]) == (not facts["believed"])
    assert "Certificate." in (made.folder / "report.html").read_text()
    assert (made.folder / "figures" / "certificate.png").stat().st_size > 1000


def test_trainings_of_a_certificate_are_kept_for_a_larger_one(certified, trained, monkeypatch):
    made, store = certified
    folder, rows = trained
    added, add = [], UtilityStore.add
    monkeypatch.setattr(UtilityStore, "add", lambda self, *each: (added.append(each[0]), add(self, *each))[1])
    model = {"base": str(folder / "base"), "device": "cpu"}
    again = dataworth.value(str(folder), None, rows, QUERIES, store=store, model=model, certify=12, **SETTINGS)
    assert len(added) <= 3  # of twelve removals and everybody
    assert read_record(str(again.folder))["certificate"]["removals"] == 12
    assert read_record(str(made.folder))["certificate"]["removals"] == 9


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "pass `model.base`"),
        ({"model": {"base": "b"}, "scoring": {"kind": "cosine"}}, "leave `scoring` out"),
        ({"model": {"base": "b"}, "scoring": {"sources": ["s0"]}}, "leave `scoring` out"),
    ],
)
def test_what_cannot_be_certified_is_refused(trained, options, said):
    folder, rows = trained
    with pytest.raises(InputError, match=said):
        dataworth.value(str(folder), None, rows, QUERIES, certify=3, **SETTINGS, **options)


def test_a_folder_of_before_is_read(certified, tmp_path):
    made, _ = certified
    record = json.loads((made.folder / "valuation.json").read_text())
    del record["account"]
    old = Account.read(record)
    assert old == Account("unknown", 3, in_nats=False, scores_in_nats=False)
    assert "made before values had a unit" in old.sentences()[1]
    assert read_account(str(made.folder)).n_queries == 3


def test_values_that_are_believed_are_calibrated():
    values = pd.DataFrame({"query_id": ["q", "*"], "game": ["additive"] * 2, "value": [3.0, 8.0], "n_tokens": [50, 50]})
    predicted, tokens = np.random.default_rng(0).standard_normal((10, 2)), np.linspace(20, 60, 10)
    noise = 0.1 * np.random.default_rng(1).standard_normal((10, 2))
    made = Certificate(predicted, 2 * predicted + 0.1 * tokens[:, None] + noise, tokens)
    found = calibrated(values, np.array([1, 4]), made)
    of_all = 8.0 * made.factor + 4 * made.per_token * 50
    np.testing.assert_allclose(found["calibrated"], [3.0 * made.factor + made.per_token * 50, of_all])
    np.testing.assert_allclose(found["calibrated_high"] - found["calibrated"], [made.within_query, 4 * made.within])
    assert calibrated(values.assign(game="interaction"), np.array([1, 4]), made)["calibrated"].isna().all()


def test_semivalues_that_do_not_add_up_are_marginal(trained):
    folder, rows = trained
    model = {"base": str(folder / "base"), "device": "cpu"}
    sources = {"game": "newton", "utility": "quadratic", "fallback": False, "semivalue": "leave_one_out"}
    made = dataworth.value(str(folder), None, rows, QUERIES, model=model, sources=sources, **SETTINGS)
    assert made.account.kind == "marginal"
    assert made.account.total is not None
