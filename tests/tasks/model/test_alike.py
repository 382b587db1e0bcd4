"""Which checkpoints are averaged, and which are refused by one sentence."""

import shutil

import pytest
from transformers import AutoConfig, AutoTokenizer

from dataworth.storage.errors import InputError
from dataworth.tasks.model.alike import refuse_other_layers, refuse_other_tokenizers, refuse_same_weights
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.training.small_model import train_tokenizer
from tests.reference.checkpoints import TEXTS, save_another, save_checkpoint


def of(*folders):
    return [ModelConfig(name=str(folder)) for folder in folders]


def refused(check, checkpoints):
    with pytest.raises(InputError) as caught:
        check(checkpoints)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_checkpoints_of_one_model_are_taken(tmp_path, checkpoints):
    alike = of(checkpoints["llama"], save_another(checkpoints["llama"], tmp_path / "other"))
    for check in (refuse_other_tokenizers, refuse_same_weights, refuse_other_layers):
        check(alike)
        check(alike[:1])


def test_another_tokenizer_is_refused_before_any_weights_are_read(tmp_path, checkpoints):
    save_checkpoint("llama", tmp_path / "other", train_tokenizer(TEXTS[:5], 280))
    (tmp_path / "other" / "model.safetensors").unlink()
    said = refused(refuse_other_tokenizers, of(checkpoints["llama"], tmp_path / "other"))
    assert said.startswith(f"--model {tmp_path / 'other'}: has another tokenizer than {checkpoints['llama']}; pass")


def test_other_classes_are_refused(tmp_path, checkpoints):
    first, other = checkpoints["bert classifier"], tmp_path / "other"
    shutil.copytree(first, other)
    config = AutoConfig.from_pretrained(other)
    config.id2label = {0: "bad", 1: "fair", 2: "good"}
    config.save_pretrained(other)
    AutoTokenizer.from_pretrained(first).save_pretrained(other)
    assert f"--model {other}: has other classes than {first}" in refused(refuse_other_tokenizers, of(first, other))
    assert "has other classes" in refused(refuse_other_tokenizers, of(first, checkpoints["llama"]))


def test_the_same_weights_by_another_name_are_refused(tmp_path, checkpoints):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoints["gpt2"], copy)
    said = refused(refuse_same_weights, of(checkpoints["llama"], checkpoints["gpt2"], copy))
    assert said == f"--model {checkpoints['gpt2']}: holds the same weights as {copy}; leave one of them out"


def test_other_layers_are_refused(checkpoints):
    said = refused(refuse_other_layers, of(checkpoints["llama"], checkpoints["gpt2"]))
    assert f"--scoring.by_layer: {checkpoints['gpt2']} has other layers than {checkpoints['llama']}" in said
