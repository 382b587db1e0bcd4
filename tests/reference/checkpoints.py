"""Small random checkpoints of the architectures people use, written as real folders."""

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

__all__ = ["ARCHITECTURES", "TEXTS", "save_checkpoint"]

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

ARCHITECTURES = ("gpt2", "llama", "neox", "bert")


def _model(name: str, vocabulary: int) -> torch.nn.Module:
    if name == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1
            )
        )
    if name == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=24,
                max_position_embeddings=64,
                bos_token_id=0,
                eos_token_id=1,
            )
        )
    if name == "neox":
        return GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=vocabulary,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=64,
                bos_token_id=0,
                eos_token_id=1,
            )
        )
    if name == "bert":
        return BertLMHeadModel(
            BertConfig(
                vocab_size=vocabulary,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                max_position_embeddings=64,
                is_decoder=True,
                bos_token_id=0,
                eos_token_id=1,
            )
        )
    raise ValueError(name)


def save_checkpoint(name: str, folder: Path, tokenizer) -> None:
    """Random weights, larger than the default initialisation so that every gradient counts."""
    torch.manual_seed(sum(map(ord, name)))
    model = _model(name, len(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
