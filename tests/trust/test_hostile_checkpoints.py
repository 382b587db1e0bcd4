"""Checkpoints nobody trusts: no pickle is read, no code runs, no weight is made up, every refusal a sentence."""

import json
import os
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dataworth.storage.errors import InputError
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
RUNS = "raise SystemExit('code of the checkpoint ran')"


@pytest.fixture
def checkpoint(checkpoints, tmp_path):
    """A copy of a sound checkpoint, to be spoiled."""
    return shutil.copytree(checkpoints["llama"], tmp_path / "checkpoint")


@pytest.fixture
def no_pickle(monkeypatch):
    """Fails at the first attempt to read a pickle, whatever becomes of it."""

    def refused(*_, **__):
        raise SystemExit("torch.load was called")

    monkeypatch.setattr(torch, "load", refused)


class Bomb:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def edit(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def refusal(folder):
    with pytest.raises(InputError) as caught:
        load(ModelConfig(name=str(folder)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def index_of(folder, file, weights):
    """An index in place of the weights that says they are in another file."""
    (folder / WEIGHTS).unlink()
    content = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, file)}
    (folder / INDEX).write_text(json.dumps(content))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "model.pth", "weights.pkl"])
@pytest.mark.parametrize("armed", [False, True])
def test_an_index_that_names_pickles_is_refused(checkpoint, tmp_path, no_pickle, file, armed):
    weights = load_file(checkpoint / WEIGHTS)
    torch.save(Bomb(tmp_path / "exploded") if armed else weights, checkpoint / file)
    index_of(checkpoint, file, weights)
    assert f"names '{file}', expected safetensors files beside it; pickled weights are never read" in refusal(
        checkpoint
    )
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt"])
def test_pickles_alone_are_refused(checkpoint, tmp_path, no_pickle, file):
    torch.save(load_file(checkpoint / WEIGHTS), checkpoint / file)
    (checkpoint / WEIGHTS).unlink()
    assert "cannot be loaded" in refusal(checkpoint)
    assert "cannot be loaded" in refusal(checkpoint / file)


def test_a_configuration_that_names_weight_files_is_refused(checkpoint, no_pickle):
    weights = load_file(checkpoint / WEIGHTS)
    torch.save(weights, checkpoint / "other.bin")
    index_of(checkpoint, "other.bin", weights)
    (checkpoint / INDEX).rename(checkpoint / "other.safetensors.index.json")
    edit(checkpoint / "config.json", transformers_weights="other.safetensors.index.json")
    assert "names weight files of its own" in refusal(checkpoint)


@pytest.mark.parametrize("place", ["../outside.safetensors", "/{root}/outside.safetensors"])
def test_an_index_does_not_lead_out_of_its_folder(checkpoint, tmp_path, place):
    weights = load_file(checkpoint / WEIGHTS)
    shutil.copy(checkpoint / WEIGHTS, tmp_path / "outside.safetensors")
    index_of(checkpoint, place.format(root=str(tmp_path).lstrip("/")), weights)
    assert "expected safetensors files beside it" in refusal(checkpoint)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # peft asks transformers by the old name
def test_a_base_with_pickles_is_refused_under_its_adapter(checkpoint, tmp_path, no_pickle):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    weights = load_file(checkpoint / WEIGHTS)
    torch.save(weights, checkpoint / "x.bin")
    index_of(checkpoint, "x.bin", weights)
    assert "pickled weights are never read" in refusal(tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_pickled_adapters_beside_a_whole_checkpoint_are_refused(checkpoint, no_pickle):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(checkpoint)
    torch.save(load_file(checkpoint / "adapter_model.safetensors"), checkpoint / "adapter_model.bin")
    (checkpoint / "adapter_model.safetensors").unlink()
    assert "cannot be loaded" in refusal(checkpoint)


def test_no_code_of_a_checkpoint_runs(checkpoint):
    (checkpoint / "own.py").write_text(RUNS)
    (checkpoint / "custom_generate").mkdir()
    (checkpoint / "custom_generate" / "generate.py").write_text(RUNS)
    edit(checkpoint / "config.json", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    loaded = load(ModelConfig(name=str(checkpoint)))
    assert type(loaded.model).__module__.startswith("transformers.models.llama")
    edit(checkpoint / "config.json", model_type="of_its_own")
    assert "cannot be loaded" in refusal(checkpoint)


def test_no_code_of_a_tokenizer_runs(checkpoint):
    (checkpoint / "own.py").write_text(RUNS)
    edit(checkpoint / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", "own.T"]}, tokenizer_class="T")
    assert "cannot be loaded" in refusal(checkpoint)


def test_weights_that_are_not_there_are_not_made_up(checkpoint):
    weights = load_file(checkpoint / WEIGHTS)
    name = "model.layers.0.self_attn.q_proj.weight"
    kept = {key: tensor for key, tensor in weights.items() if key != name}
    save_file(kept, checkpoint / WEIGHTS, metadata={"format": "pt"})
    assert f"its files lack the weights {name})" in refusal(checkpoint)


def rewritten(path, change):
    """The weights with another header, which `change` is given and returns, or bytes in its place."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = change(json.loads(content[8:end]))
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


NAME = "model.norm.weight"
LIES = {
    "an end beyond the file": lambda header: header | {NAME: header[NAME] | {"data_offsets": [0, 2**50]}},
    "an end before the beginning": lambda header: header | {NAME: header[NAME] | {"data_offsets": [64, 0]}},
    "negative places": lambda header: header | {NAME: header[NAME] | {"data_offsets": [-64, 0]}},
    "more numbers than bytes": lambda header: header | {NAME: header[NAME] | {"shape": [2**40]}},
    "a product beyond 64 bits": lambda header: header | {NAME: header[NAME] | {"shape": [2**40, 2**40]}},
    "another shape": lambda header: header | {NAME: header[NAME] | {"shape": [2, 8]}},
    "bytes of two": lambda header: header | {NAME: header["lm_head.weight"] | {"dtype": "F32"}},
    "a kind of number of its own": lambda header: header | {NAME: header[NAME] | {"dtype": "PICKLE"}},
    "no JSON": lambda _: b"\x80\x04\x95.",
    "nested": lambda _: b"[" * 100_000,
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("change", LIES.values(), ids=LIES)
def test_weights_that_are_not_where_their_header_says_are_a_sentence(checkpoint, no_pickle, change):
    rewritten(checkpoint / WEIGHTS, change)
    assert "cannot be loaded" in refusal(checkpoint)


@pytest.mark.parametrize("n_bytes", [0, 4, 8, 100])
def test_weights_that_end_early_are_a_sentence(checkpoint, n_bytes):
    os.truncate(checkpoint / WEIGHTS, n_bytes)
    assert "cannot be loaded" in refusal(checkpoint)


def test_a_header_larger_than_memory_is_a_sentence(checkpoint):
    for size in (2**30, 2**50, 2**64 - 1):
        with (checkpoint / WEIGHTS).open("r+b") as file:
            file.write(size.to_bytes(8, "little"))
        assert "cannot be loaded" in refusal(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_in_the_place_of_a_file_is_a_sentence(checkpoint, name, kind):
    (checkpoint / name).unlink()
    if kind == "pipe":
        os.mkfifo(checkpoint / name)
    else:
        (checkpoint / name).symlink_to("/dev/zero")
    assert "cannot be loaded" in refusal(checkpoint)


SETTINGS = {
    "a size that is text": {"hidden_size": "a"},
    "no heads": {"num_attention_heads": 0},
    "more words than there are": {"vocab_size": 10**13},
    "negative layers": {"num_hidden_layers": -1},
    "a million layers": {"num_hidden_layers": 10**6},
    "ten thousand million words": {"vocab_size": 10**10},
    "a width of a thousand million": {"intermediate_size": 10**9},
    "an activation that is code": {"hidden_act": "__import__('os')"},
    "an architecture that is a number": {"architectures": 5},
    "architectures that are numbers": {"architectures": [5]},
    "quantisation that is a number": {"quantization_config": 5},
    "positions that are text": {"max_position_embeddings": "x"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_that_make_no_model_are_a_sentence(checkpoint, settings):
    edit(checkpoint / "config.json", **settings)
    refusal(checkpoint)


FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", INDEX, "adapter_config.json")


@pytest.mark.parametrize("content", [b"[]", b"5", b"{", b"\xff\xfe{}", b"[" * 100_000, b""])
@pytest.mark.parametrize("file", FILES)
def test_files_that_are_no_json_object_are_a_sentence(checkpoint, file, content):
    if file == INDEX:
        (checkpoint / WEIGHTS).unlink()
    if file == "adapter_config.json":
        (checkpoint / "config.json").unlink()
    (checkpoint / file).write_bytes(content)
    refusal(checkpoint)
