"""Small random checkpoints of the architectures people use, written as real folders."""

import shutil
from pathlib import Path

import torch
import transformers as hf

__all__ = ["ARCHITECTURES", "CLASSIFIERS", "TEXTS", "save_another", "save_checkpoint"]

TEXTS = [
    "The river runs down from the hills and never asks the way to the sea.",
    "A small list of names was kept in the drawer beside the window.",
    "Numbers are added first, then they are sorted and printed.",
    "Open the file, read every line, and close it when you are done.",
    "She sang of ships, of salt and of the long way home.",
    "The server answers on port eighty unless it is told otherwise.",
    "Return the sum of both arguments, or None if either is missing.",
    "Winter came early that year, and the road to the village was closed.",
    "Raise an error when the key is not found in the mapping.",
    "The committee met twice, agreed on little, and adjourned until spring.",
]

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
LLAMA = SIZE | {"intermediate_size": 24, "num_key_value_heads": 2}
BERT = SIZE | {"intermediate_size": 24}

# name → (configuration, model, settings)
MODELS = {
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, LLAMA),
    "llama with biases": (hf.LlamaConfig, hf.LlamaForCausalLM, LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "mistral": (hf.MistralConfig, hf.MistralForCausalLM, LLAMA | {"sliding_window": 8}),
    "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, LLAMA),
    "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, LLAMA | {"head_dim": 4}),
    # A window as wide as the text: in float64 its mask overflows the float32 softmax of a row that is all padding.
    "gemma2": (hf.Gemma2Config, hf.Gemma2ForCausalLM, LLAMA | {"head_dim": 4, "sliding_window": 64}),
    "gemma3": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM, LLAMA | {"head_dim": 4, "sliding_window": 8}),
    "gpt2": (hf.GPT2Config, hf.GPT2LMHeadModel, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "neox": (hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM, SIZE | {"intermediate_size": 32}),
    "opt": (hf.OPTConfig, hf.OPTForCausalLM, SIZE | {"ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0}),
    "phi": (hf.PhiConfig, hf.PhiForCausalLM, SIZE | {"intermediate_size": 24}),
    "bert": (hf.BertConfig, hf.BertLMHeadModel, BERT | {"is_decoder": True}),
}
CLASSIFIERS = {
    "bert classifier": (hf.BertConfig, hf.BertForSequenceClassification, BERT | {"num_labels": 3}),
    "distilbert classifier": (
        hf.DistilBertConfig,
        hf.DistilBertForSequenceClassification,
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 64, "num_labels": 3},
    ),
}
ARCHITECTURES = tuple(MODELS)


def _model(name: str, vocabulary: int) -> torch.nn.Module:
    configuration, model, settings = (MODELS | CLASSIFIERS)[name]
    return model(configuration(vocab_size=vocabulary, bos_token_id=0, eos_token_id=1, pad_token_id=1, **settings))


def save_checkpoint(name: str, folder: Path, tokenizer) -> None:
    """Random weights, larger than the default initialisation so that every gradient counts."""
    torch.manual_seed(sum(map(ord, name)))
    model = _model(name, len(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_another(checkpoint: Path, folder: Path) -> Path:
    """Another checkpoint of the same language model: other weights, the same tokenizer."""
    shutil.copytree(checkpoint, folder)
    model = hf.AutoModelForCausalLM.from_pretrained(checkpoint)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
