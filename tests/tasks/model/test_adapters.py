"""LoRA adapters: which layers are tracked, that their gradients are right, and that a folder of adapters loads."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from dataworth.storage.errors import InputError
from dataworth.tasks.capture.gradients import GradientCapture
from dataworth.tasks.capture.passes import gradient_rows
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.layers import coverage, tracked_layers
from dataworth.tasks.model.loading import load
from dataworth.tasks.projection.bases import projections_of
from dataworth.tasks.projection.config import ProjectionConfig
from tests.reference.dense import dense_gradients

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def adapter(checkpoints, tmp_path):
    """A folder of adapters of two layers of each block, with weights that are not zero."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    tuned = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def names_of(layers):
    return [layer.name for layer in layers]


def test_a_folder_of_adapters_loads_with_its_base(adapter, checkpoints):
    loaded = load(ModelConfig(name=str(adapter)))
    assert len(loaded.layers) == 2 * 2 * 2  # two matrices, two layers, two blocks
    assert all("lora_A" in name or "lora_B" in name for name in names_of(loaded.layers))
    base = load(ModelConfig(name=str(checkpoints["llama"])))
    with_base = load(ModelConfig(name=str(adapter), adapters="none"))
    assert [name.replace(".base_layer", "") for name in names_of(with_base.layers)] == names_of(base.layers)
    assert len({loaded.fingerprint, base.fingerprint}) == 2
    assert with_base.fingerprint == loaded.fingerprint
    with pytest.raises(InputError, match="the model has no LoRA adapters"):
        load(ModelConfig(name=str(checkpoints["llama"]), adapters="only"))


def test_pickled_adapters_are_refused(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match="pickled weights are never read"):
        load(ModelConfig(name=str(adapter)))


@pytest.mark.parametrize("adapters", ["only", "none"])
def test_gradients_of_adapters_and_of_the_layers_below(adapter, adapters):
    model = AutoModelForCausalLM.from_pretrained(adapter, dtype=torch.float64).eval().requires_grad_(False)
    layers = tracked_layers(model, adapters=adapters)
    ids = torch.tensor([[5, 7, 11, 3, 8], [2, 9, 4, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    projections = projections_of(layers, ProjectionConfig(kind="identity"))
    from dataworth.tasks.model.halves import halves

    with GradientCapture([layer.modules for layer in layers], projections, torch.float64) as capture:
        rows, _ = gradient_rows(*halves(model), capture, ids, mask, ids.masked_fill(mask == 0, -100))
    examples = [(row[: int(own.sum())],) * 2 for row, own in zip(ids, mask, strict=True)]
    dense = dense_gradients(model, [layer.module for layer in layers], examples)
    expected = torch.stack([torch.cat([gradient.flatten() for gradient in item]) for item in dense])
    np.testing.assert_allclose(rows, expected, rtol=1e-7, atol=1e-9)


def test_a_model_wrapped_by_peft_is_tracked_without_its_head(checkpoints):
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    plain = tracked_layers(model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert len(tracked_layers(wrapped)) == 4
    assert len(tracked_layers(wrapped, adapters="none")) == len(plain)
    sentence = coverage(wrapped, tracked_layers(wrapped)).sentence()
    assert sentence.startswith(f"{4 * 2 * 16 / sum(p.numel() for p in wrapped.parameters()):.1%} of")
