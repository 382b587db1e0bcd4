"""LoRA adapters know where their training began: what was taught is measured, divided, and merged by products."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import dataworth
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.corpus.steps import prepare_corpus, prepare_queries
from dataworth.tasks.model.adapter_folders import is_adapter
from dataworth.tasks.model.adapters import begin_again
from dataworth.tasks.model.config import ModelConfig, ModelsConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.training import merging, retraining
from dataworth.tasks.training.config import TrainingConfig
from tests.harness.tuned import NAMES

pytestmark = pytest.mark.filterwarnings("ignore")

TRAINING = TrainingConfig(epochs=8, batch_tokens=128, learning_rate=0.02)
RANK, SCALING = 3, 2.0


@pytest.fixture(params=["llama", "gpt2"])
def fresh(request, checkpoints, tmp_path):
    """A folder of adapters that add nothing yet; gpt2 keeps its weights turned."""
    targets = {"llama": "all-linear", "gpt2": ["c_attn", "c_proj"]}[request.param]
    model = AutoModelForCausalLM.from_pretrained(checkpoints[request.param])
    settings = LoraConfig(r=RANK, lora_alpha=SCALING * RANK, target_modules=targets, task_type="CAUSAL_LM")
    get_peft_model(model, settings).save_pretrained(tmp_path / "fresh")
    return tmp_path / "fresh"


class Tuned:
    """Adapters that the flow's own trainer trained on a corpus."""

    def __init__(self, fresh, folder, corpus_file, queries_file):
        self.folder, self.corpus_file, self.queries_file = folder / "adapter", corpus_file, queries_file
        self.store = str(folder / "store")
        model = ModelsConfig(name=str(fresh)).only
        self.corpus = CorpusStore.open(prepare_corpus(self.store, model, CorpusConfig(files=[str(corpus_file)])))
        self.queries = CorpusStore.open(prepare_queries(self.store, model, QueriesConfig(file=str(queries_file))))
        loaded = load(model)  # as PEFT drew them
        with retraining.as_it_was(loaded):
            retraining.train(loaded, self.corpus, np.arange(len(self.corpus.windows)), TRAINING)
            loaded.model.save_pretrained(self.folder)
            loaded.tokenizer.save_pretrained(self.folder)
        self.model = ModelsConfig(name=str(self.folder)).only


@pytest.fixture
def tuned(fresh, tmp_path, corpus_file, queries_file):
    return Tuned(fresh, tmp_path, corpus_file, queries_file)


def test_where_adapters_began_they_add_nothing(tuned):
    assert tuned.model.base is not None
    begun, below = load(tuned.model, 1.0), load(ModelConfig(name=tuned.model.base))
    before = query_losses(below, tuned.queries)
    np.testing.assert_allclose(query_losses(load(tuned.model, 1.0), tuned.queries), before, rtol=1e-6)
    halfway = load(tuned.model, 0.5)
    for name, weight in halfway.model.state_dict().items():
        own = load(tuned.model).model.state_dict()[name]
        torch.testing.assert_close(weight, own * (0.5 if "lora_B" in name else 1))
    again = load(tuned.model, 1.0)
    assert again.fingerprint == begun.fingerprint


def test_products_are_merged_not_matrices(tuned):
    base = load(tuned.model, 1.0)
    of_windows = retraining.window_players(tuned.corpus, "source", NAMES)
    differences, states, trained = [], [], []
    for player in range(2):
        with retraining.as_it_was(base) as start:
            retraining.train(base, tuned.corpus, np.flatnonzero(of_windows == player), TRAINING)
            moved = {name for name, weight in base.model.state_dict().items() if not torch.equal(weight, start[name])}
            assert all("lora_" in name for name in moved)
            differences.append(retraining.packed_difference(base.model, start))
            states.append({name: weight.clone() for name, weight in base.model.state_dict().items()})
            trained.append(query_losses(base, tuned.queries))
    nobody = query_losses(base, tuned.queries)
    models = merging.MergedModels(base, iter(differences), 2)
    found = models.losses(np.array([[0, 0], [1, 0], [0, 1], [0.6, -0.3]]), tuned.queries)
    np.testing.assert_allclose(found[:3], [nobody, *trained], rtol=1e-5)
    np.testing.assert_array_equal(query_losses(base, tuned.queries), nobody)
    with retraining.as_it_was(base), torch.no_grad():
        for name, module in base.model.named_modules():
            if hasattr(module, "base_layer"):
                for part, state in zip((0.6, -0.3), states, strict=True):
                    a, b = (state[f"{name}.{matrix}.default.weight"] for matrix in ("lora_A", "lora_B"))
                    added = part * SCALING * b @ a
                    module.base_layer.weight += added.T if module.fan_in_fan_out else added
        np.testing.assert_allclose(found[3], query_losses(base, tuned.queries), rtol=1e-5)


def test_a_folder_of_adapters_is_valued_from_its_base_on(tuned, tmp_path):
    given = str(tuned.folder), None, str(tuned.corpus_file), str(tuned.queries_file)
    valuation = dataworth.value(*given, store=tuned.store, training=TRAINING.model_dump())
    table = valuation.sources.set_index(["query_id", "source"])
    assert set(table["game"]) == {"merged"}
    assert set(table["kind"]) == {"share"}
    told = load_notes(tuned)
    assert told["reliable"]
    assert told["estimator"].startswith("models merged from a training on all and from 3 trainings on one source each")
    model, base = load(tuned.model), load(tuned.model, 1.0)
    taken = float(query_losses(base, tuned.queries).sum() - query_losses(load(tuned.model), tuned.queries).sum())
    assert model.fingerprint != base.fingerprint
    assert told["v(all), of the model"] - told["v(none)"] == pytest.approx(taken, rel=1e-4)
    assert table.loc["*", "value"].sum() == pytest.approx(told["v(all)"] - told["v(none)"], rel=1e-4)
    masks, base = all_coalitions(3), load(tuned.model, 1.0)
    of_windows, losses = retraining.window_players(tuned.corpus, "source", NAMES), []
    for mask in masks:
        chosen = np.flatnonzero(mask[of_windows])
        losses.append(retraining.losses_after_training(base, tuned.corpus, chosen, tuned.queries, TRAINING))
    truth = exact_semivalues(masks, -np.array(losses), size_weights(3, "shapley")).sum(axis=0)
    np.testing.assert_allclose(table.loc["*", "value"][list(NAMES)], truth, atol=0.15 * np.abs(truth).max())


def load_notes(tuned):
    """Of the only values in the store."""
    (manifest,) = Path(tuned.store, "values").glob("*/manifest.json")
    return json.loads(manifest.read_text())["attributes"]["notes"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"target_modules": ["q_proj", "embed_tokens"]}, "of other than linear layers"),
        ({"trainable_token_indices": [1, 2]}, "train more than the matrices of LoRA"),
        ({"bias": "lora_only"}, "train more than the matrices of LoRA"),
        ({"modules_to_save": ["lm_head"]}, "train more than the matrices of LoRA"),
        ({"init_lora_weights": "olora"}, "began as olora"),
    ],
)
def test_adapters_of_an_unknown_beginning_are_said_to_be(checkpoints, tmp_path, changed, said):
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    settings = LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **changed})
    get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=said):
        load(ModelsConfig(name=str(tmp_path / "adapter")).only, 1.0)


def test_another_base_than_they_name_is_refused(tuned, checkpoints):
    model = ModelConfig(name=str(tuned.folder), base=str(checkpoints["opt"]))
    with pytest.raises(InputError, match="began from .*, which they name"):
        load(model, 1.0)


def test_a_weight_that_another_layer_shares_is_not_adapted_alone(checkpoints):
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    model.lm_head.weight = model.model.embed_tokens.weight
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="another layer shares"):
        begin_again(adapted, 1.0)


@pytest.mark.parametrize("content", ["[1]", "{}", '{"base_model_name_or_path": 3}', "[" * 100_000])
def test_settings_of_adapters_that_are_none_are_a_sentence(fresh, content):
    (fresh / "adapter_config.json").write_text(content)
    model = ModelsConfig(name=str(fresh)).only
    assert model.base is None
    with pytest.raises(InputError, match="cannot be loaded"):
        load(model)


def test_a_name_that_can_be_no_folder_is_no_adapter():
    assert not is_adapter("x" * 5000)
    assert not is_adapter("a\0b")
