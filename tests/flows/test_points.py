"""Gradients taken of the model and of its base: the mean of both, as parts of what training took off."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import dataworth
from dataworth.config import ValueConfig
from dataworth.storage.errors import InputError
from dataworth.storage.schema import ALL_QUERIES
from dataworth.tasks.model.config import ModelsConfig
from dataworth.tasks.model.loading import load
from tests.harness.tuned import small_with_base
from tests.reference.checkpoints import TEXTS

SETTINGS = {
    "corpus": {"max_length": 24},
    "projection": {"rank": 2},
    "curvature": {"draws": 1},
    "sources": {"game": "additive"},
    "scoring": {"save_matrix": True},
}
QUERIES = [{"id": f"q{n}", "prompt": TEXTS[n][:30], "completion": TEXTS[n][30:60]} for n in range(3)]
ROWS = [{"id": f"d{n}", "source": f"s{n % 3}", "text": text} for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and the folder `base` in it."""
    return small_with_base(tmp_path_factory.mktemp("points") / "model")


def valued(name, store, **model):
    return dataworth.value(str(name), None, ROWS, QUERIES, store=store, model={"device": "cpu", **model}, **SETTINGS)


def whole(made):
    table = made.sources
    return table[table["query_id"] == ALL_QUERIES].set_index("source").sort_index()


def test_with_a_base_a_quarter_is_its_own_and_values_add_up_to_what_was_taught(folder, tmp_path):
    end, begun = valued(folder, tmp_path), valued(folder / "base", tmp_path)
    both = valued(folder, tmp_path, base=str(folder / "base"))
    one, two, mean = (each.scores.to_pandas() for each in (end, begun, both))
    two = two.loc[one.index, one.columns]
    np.testing.assert_allclose(mean.loc[one.index, one.columns], 0.75 * one + 0.25 * two, rtol=1e-4, atol=1e-6)
    table, plain = whole(both), 3 * whole(end)["value"] + whole(begun)["value"]
    alone = valued(folder, tmp_path, base=str(folder / "base"), point="end")
    np.testing.assert_allclose(whole(alone)["value"], whole(end)["value"], rtol=1e-6)
    assert set(whole(alone)["kind"]) == {"marginal"}
    assert set(table["kind"]) == {"share"}
    np.testing.assert_allclose(table["value"].sum(), table["total"].iloc[0], rtol=1e-6)
    np.testing.assert_allclose(table["value"] / table["value"].sum(), plain / plain.sum(), rtol=1e-5)
    assert (table["low"] < table["value"]).all()
    assert (table["value"] < table["high"]).all()
    said = both.account.sentences()[1]
    assert said.startswith(
        "Values are parts of that, in nats a query, as the gradients of base and model divide it; not certified. "
        "Unscaled they add up to "
    )
    np.testing.assert_allclose(both.account.values / both.account.scaled_by, plain.sum() / 4, rtol=1e-5)
    assert "accounted for" not in both.account.sentences()


@pytest.mark.parametrize(
    "narrowed",
    [
        {"scoring": {"sources": ["s0", "s1"]}},
        {"scoring": {"layers": ["*down_proj"]}},
        {"scoring": {"kind": "cosine"}},
        {"certify": 2, "training": {"epochs": 3}},
    ],
    ids=str,
)
def test_a_part_of_the_scores_is_no_part_of_what_was_taught(folder, tmp_path, narrowed):
    settings = {**SETTINGS, **narrowed, "model": {"device": "cpu", "base": str(folder / "base")}}
    made = dataworth.value(str(folder), None, ROWS, QUERIES, store=tmp_path, **settings)
    assert set(whole(made)["kind"]) == {"marginal"}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, which meets transformers' new names
def test_adapters_begin_where_their_second_matrix_is_zero(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.requires_grad_(True)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, matrix in tuned.named_parameters():
            if "lora_B" in name:
                matrix.copy_(0.1 * torch.randn_like(matrix))
    tuned.save_pretrained(tmp_path / "adapter")
    begun = load(ModelsConfig(name=[str(tmp_path / "adapter")], device="cpu", point="base").only)
    matrices = {name: value for name, value in begun.model.named_parameters() if "lora_" in name}
    assert all((value == 0).all() == ("lora_B" in name) for name, value in matrices.items())
    with pytest.raises(InputError, match="is of one checkpoint, no adapters, with"):
        valued(tmp_path / "adapter", tmp_path / "store", base=str(folder), point="both")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": {"point": "base"}}, "a valuation takes the model, too: pass both"),
        ({"model": {"point": "both"}}, "is of one checkpoint, no adapters"),
        (
            {"model": {"point": "both", "base": "b", "name": ["a", "c"]}},
            "is of one checkpoint, no adapters",
        ),
        ({"model": {"point": "both", "base": "b"}, "sources": {"game": "newton"}}, "pass --game additive"),
        ({"model": {"point": "both", "base": "b"}, "sources": {"game": "auto"}}, "pass --game additive"),
        ({"model": {"point": "both", "base": "b"}, "method": "replay"}, "scored by gradients"),
        ({"model": {"point": "both", "base": "b"}, "sources": {"game": "additive", "trainings": 9}}, "by trainings"),
    ],
)
def test_where_there_are_no_two_points_it_is_said(changed, message):
    given = {"corpus": {"files": ["c"]}, "queries": {"file": "q"}, "results": "r", "sources": {"game": "additive"}}
    model = {"name": ["a"], **changed.pop("model")}
    with pytest.raises(ValueError, match=message):
        ValueConfig.model_validate({**given, "model": model, **changed})


def test_a_base_with_the_weights_of_the_model_is_no_second_point(folder, tmp_path, caplog):
    assert set(whole(valued(folder, tmp_path, base=str(folder)))["kind"]) == {"marginal"}
    assert "gradients are taken of the model alone: `model.base`: has the weights of the model" in caplog.text
    with pytest.raises(InputError, match=r"model\.base`: has the weights of the model: leave `model\.point` out"):
        valued(folder, tmp_path, base=str(folder), point="both")
