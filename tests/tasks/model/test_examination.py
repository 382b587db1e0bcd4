"""What is found out of a checkpoint when it is loaded."""

import pytest
import torch
import transformers as hf

from dataworth.storage.errors import InputError
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.examination import examined
from dataworth.tasks.model.halves import Halves, whole
from dataworth.tasks.model.layers import tracked_layers
from dataworth.tasks.model.loading import load
from tests.conformance.families import tiny_configuration
from tests.reference.checkpoints import ARCHITECTURES


@pytest.fixture
def model(checkpoints):
    return hf.AutoModelForCausalLM.from_pretrained(checkpoints["llama"]).eval().requires_grad_(False)


def found(model, tokenizer, parts=None):
    return examined(model, tokenizer, tracked_layers(model), parts or whole(model), classifies=False)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "bert"])
def test_usual_models_are_padded_and_whole(checkpoints, name):
    loaded = load(ModelConfig(name=str(checkpoints[name])))
    assert loaded.reading.batching == "padded"
    assert not loaded.reading.may_idle
    assert loaded.reading.sentence is None
    assert loaded.left_out == ()
    assert loaded.max_positions == 64


def test_a_model_that_draws_is_refused(model, tokenizer):
    one = whole(model)
    noisy = Halves(lambda ids, mask: one.body(ids, mask) + 0.1 * torch.rand(()), one.head)
    with pytest.raises(InputError, match="computes something else every time"):
        found(model, tokenizer, noisy)


def test_rows_that_look_at_one_another_are_computed_alone(model, tokenizer):
    one = whole(model)

    def body(ids, mask):
        states = one.body(ids, mask)
        return states + 0.1 * states.flip(0)

    assert found(model, tokenizer, Halves(body, one.head)).reading.batching == "alone"


def test_a_model_that_cannot_be_padded_is_computed_by_length(model, tokenizer):
    one = whole(model)

    def body(ids, mask):
        return one.body(ids, torch.ones_like(mask)) * (1 + 0.1 * (mask == 0).sum())

    assert found(model, tokenizer, Halves(body, one.head)).reading.batching == "equal"


def test_a_model_that_raises_is_one_sentence(model, tokenizer):
    def body(ids, mask):
        raise KeyError("pixel_values")

    with pytest.raises(InputError, match=r"it cannot read a text alone \('pixel_values'\)"):
        found(model, tokenizer, Halves(body, whole(model).head))


def test_layers_without_a_part_in_a_texts_loss_are_left_out(tmp_path, tokenizer):
    """A decoder's cross-attention, where nothing is encoded."""
    torch.manual_seed(0)
    configuration = tiny_configuration("bart", vocab_size=len(tokenizer))
    model = hf.BartForCausalLM(configuration).eval().requires_grad_(False)
    seen = found(model, tokenizer)
    assert seen.left_out
    assert all("encoder_attn" in name for name in seen.left_out)
    assert not any("encoder_attn" in layer.name for layer in seen.layers)


def test_what_was_computed_with_other_padding_is_not_found_again(tmp_path, tokenizer):
    """The fingerprint says how examples are put together, where that is not as ever."""
    torch.manual_seed(0)
    names = {}
    for pad in (0, 1):
        configuration = tiny_configuration("llama", vocab_size=len(tokenizer), num_labels=3, pad_token_id=pad)
        torch.manual_seed(0)
        hf.LlamaForSequenceClassification(configuration).save_pretrained(tmp_path / str(pad))
        tokenizer.save_pretrained(tmp_path / str(pad))
        loaded = load(ModelConfig(name=str(tmp_path / str(pad))))
        assert loaded.reading.pad_token == pad
        names[pad] = loaded.fingerprint
    assert names[0] != names[1]
