"""Which layers are tracked, what loading refuses, and fingerprints."""

import json
import shutil

import pytest
import torch

from dataworth.storage.errors import InputError
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.layers import coverage, tracked_layers
from dataworth.tasks.model.loading import load, model_fingerprint
from tests.reference.checkpoints import ARCHITECTURES

LAYERS_PER_BLOCK = {"gpt2": 4, "neox": 4, "bert": 6, "opt": 6, "phi": 6}  # the others: 7


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_linear_layers_of_the_body_are_tracked(model_in_float64, name):
    model = model_in_float64(name)
    layers = tracked_layers(model)
    assert len(layers) == 2 * LAYERS_PER_BLOCK.get(name, 7)
    assert all("head" not in layer.name and "embed" not in layer.name for layer in layers)
    for layer in layers:
        inputs = torch.randn(1, 2, layer.n_inputs - layer.has_bias, dtype=torch.float64)
        assert layer.module(inputs).shape[-1] == layer.n_outputs


def test_coverage_counts_every_parameter_once(model_in_float64):
    model = model_in_float64("llama")
    found = coverage(model, tracked_layers(model))
    assert found.n_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.n_tracked + sum(found.untracked.values()) == found.n_parameters
    assert set(found.untracked) == {"Embedding", "Linear", "LlamaRMSNorm"}
    assert "are tracked" in found.sentence()


def test_patterns_choose_layers(model_in_float64):
    model = model_in_float64("llama")
    chosen = tracked_layers(model, ["*.mlp.*"], ["*.1.*"])
    assert [layer.name.split(".", 3)[3] for layer in chosen] == ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    with pytest.raises(InputError, match="matches none of the model's 14 linear layers"):
        tracked_layers(model, ["*.nothing.*"])
    with pytest.raises(InputError, match="no layer is left"):
        tracked_layers(model, [], ["*"])


def test_loading_freezes_and_fingerprints_follow_the_weights(checkpoints, tmp_path):
    loaded = load(ModelConfig(name=str(checkpoints["llama"])))
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.max_positions == 64
    assert load(ModelConfig(name=str(checkpoints["llama"]))).fingerprint == loaded.fingerprint
    moved = shutil.copytree(checkpoints["llama"], tmp_path / "moved")
    again = load(ModelConfig(name=str(moved)))
    assert again.fingerprint == loaded.fingerprint
    assert again.tokenizer_fingerprint == loaded.tokenizer_fingerprint
    with torch.no_grad():
        again.model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    assert model_fingerprint(again.model) != loaded.fingerprint
    assert load(ModelConfig(name=str(moved), dtype="bfloat16")).fingerprint != loaded.fingerprint


def test_checkpoints_that_are_refused(checkpoints, tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        load(ModelConfig(name=str(tmp_path / "gone")))
    with pytest.raises(InputError, match="cannot be loaded"):
        load(ModelConfig(name="nobody/such-model"))
    pickled = shutil.copytree(checkpoints["llama"], tmp_path / "pickled")
    torch.save({"x": torch.ones(1)}, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        load(ModelConfig(name=str(pickled)))
    damaged = shutil.copytree(checkpoints["llama"], tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    with pytest.raises(InputError, match="cannot be loaded"):
        load(ModelConfig(name=str(damaged)))
    coded = shutil.copytree(checkpoints["llama"], tmp_path / "coded")
    config = json.loads((coded / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Own"}}
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "code.py").write_text("raise SystemExit('ran code of the checkpoint')")
    with pytest.raises(InputError, match="cannot be loaded"):
        load(ModelConfig(name=str(coded)))
    with pytest.raises(InputError, match=r"--model\.device warp: not usable"):
        load(ModelConfig(name=str(checkpoints["llama"]), device="warp"))


def test_a_checkpoint_without_a_tokenizer_takes_that_of_another(checkpoints, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(checkpoints["llama"], bare)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"it has no tokenizer; pass --model\.tokenizer, the checkpoint whose it is"):
        load(ModelConfig(name=str(bare)))
    whole = load(ModelConfig(name=str(checkpoints["llama"])))
    loaded = load(ModelConfig(name=str(bare), tokenizer=str(checkpoints["llama"])))
    assert loaded.tokenizer_fingerprint == whole.tokenizer_fingerprint
    assert loaded.fingerprint == whole.fingerprint
