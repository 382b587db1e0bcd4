"""What a language model says after a prompt, by its own greatest probabilities and nothing else."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig

from dataworth.tasks.model.loading import LoadedModel

__all__ = ["end_tokens", "greedy_tokens"]


def end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """The ids with which the model ends what it says: those of its generation settings, else the tokenizer's."""
    settings = getattr(loaded.model, "generation_config", None)
    named = [getattr(settings, "eos_token_id", None), loaded.tokenizer.eos_token_id]
    ends: int | list[int] = next((ids for ids in named if ids is not None), [])
    return frozenset(ends if isinstance(ends, list) else [ends])


@torch.no_grad()
def greedy_tokens(loaded: LoadedModel, prompt: Sequence[int], most: int) -> list[int]:
    """The ids that the model adds to a prompt, its end token included where it says it.

    Each is the most probable one. A checkpoint's settings of generation (sampling, several answers, penalties, words
    that are forced or forbidden) are left aside, but for its end tokens.

    Args:
        loaded: a language model.
        prompt: token ids, at least one.
        most: ids to add.
    """
    model = loaded.model
    ids = torch.tensor([prompt], device=loaded.device)
    ends = sorted(end_tokens(loaded))
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        output = model.generate(  # type: ignore[operator]  # typed as the base of all models
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=GenerationConfig(
                max_new_tokens=most,
                do_sample=False,
                num_beams=1,
                eos_token_id=ends or None,
                pad_token_id=loaded.reading.pad_token,
            ),
        )
    finally:
        model.generation_config = own
    said: list[int] = output[0, len(prompt) :].tolist()
    return said
