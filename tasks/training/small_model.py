"""Training a small language model: the demo's, and the tests'."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = [
    "CLIPPED",
    "SmallModel",
    "Training",
    "learning_rates",
    "shuffled_batches",
    "train_language_model",
    "train_steps",
    "train_tokenizer",
]

# Gradients are clipped to this norm.
CLIPPED = 1.0


class Training(Protocol):
    """How a model is trained; see SmallModel."""

    @property
    def epochs(self) -> int: ...

    @property
    def batch_tokens(self) -> int: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class SmallModel:
    """Size and training of a small Llama-shaped model.

    Args:
        vocabulary: tokens of the byte-level tokenizer.
        hidden, layers, heads, intermediate: the architecture.
        positions: most tokens it reads.
        epochs: passes over the corpus.
        batch_tokens: tokens of a step.
        learning_rate: highest, warmed up over the first tenth, then cosine.
        weight_decay: of AdamW.
        seed: of weights and order.
    """

    vocabulary: int = 2048
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 352
    positions: int = 256
    epochs: int = 7
    batch_tokens: int = 2048
    learning_rate: float = 6e-3
    weight_decay: float = 0.1
    seed: int = 0


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that starts every text with <s>.

    Args:
        texts: to learn merges from.
        vocabulary: most tokens, at least the 256 bytes and two special ones.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def train_language_model(
    texts: Sequence[str],
    folder: Path,
    settings: SmallModel,
    on_step: Callable[[int, int, float], None],
    tokenizer: PreTrainedTokenizerFast | None = None,
    start: Path | None = None,
) -> float:
    """Train on documents, never two in one row, and save checkpoint and tokenizer (safetensors).

    The folder `base` in it gets the checkpoint that training began from: the same for the same settings and tokenizer.

    Args:
        texts: the documents; without any, the checkpoint is its base.
        folder: made; must not exist.
        settings: size and training.
        on_step: called with (step, steps, loss) after each step.
        tokenizer: made of the texts where none is given.
        start: checkpoint of such a model to go on from; None: weights drawn anew.

    Returns:
        Mean loss of the last tenth of the steps, nats a token; NaN without a step.
    """
    tokenizer = tokenizer or train_tokenizer(texts, settings.vocabulary)
    windows = _windows(tokenizer, texts, settings.positions)
    model = _drawn(settings, tokenizer) if start is None else LlamaForCausalLM.from_pretrained(start)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    batches = shuffled_batches([len(window) for window in windows], settings)

    def loss_of(step: int) -> torch.Tensor:
        return _loss(model, [windows[number] for number in batches[step]])

    model.train()
    losses = train_steps(model.parameters(), len(batches), loss_of, settings, on_step)
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return float(np.mean(losses[-max(1, len(losses) // 10) :])) if losses else float("nan")


def _drawn(settings: SmallModel, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            intermediate_size=settings.intermediate,
            max_position_embeddings=settings.positions,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            use_cache=False,
        )
    )


def train_steps(
    parameters: Iterable[torch.nn.Parameter],
    n_steps: int,
    loss_of: Callable[[int], torch.Tensor],
    settings: Training,
    on_step: Callable[[int, int, float], None] = lambda *_: None,
) -> list[float]:
    """AdamW with a rate that warms up over the first tenth and falls as a cosine, gradients clipped to norm 1.

    Args:
        parameters: that are trained.
        n_steps: of them.
        loss_of: from a step's number, from 0, to its loss.
        settings: rate and decay.
        on_step: called with (step, steps, loss) after each step.

    Returns:
        The loss of each step.
    """
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    (group,) = optimizer.param_groups
    losses: list[float] = []
    for step, rate in enumerate(learning_rates(n_steps, settings.learning_rate)):
        group["lr"] = rate
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIPPED)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        on_step(step + 1, n_steps, losses[-1])
    return losses


def learning_rates(n_steps: int, highest: float) -> list[float]:
    """The rate of each step: it warms up over the first tenth and falls as a cosine."""
    warm = max(1, n_steps // 10)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1.0 + float(np.cos(np.pi * (step - warm) / max(1, n_steps - warm))))

    return [highest * factor(step) for step in range(n_steps)]


def _windows(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int) -> list[list[int]]:
    return [
        ids[start : start + length]
        for ids in (tokenizer(list(texts))["input_ids"] if texts else [])
        for start in range(0, len(ids), length)
        if len(ids) - start >= 2
    ]


def shuffled_batches(lengths: Sequence[int], settings: Training) -> list[list[int]]:
    """Positions of windows of similar length together, the batches of every epoch in a new order.

    Args:
        lengths: tokens of each window.
        settings: epochs, tokens of a batch, seed.
    """
    generator = np.random.default_rng(settings.seed)
    batches: list[list[int]] = []
    for _ in range(settings.epochs):
        jitter = generator.permutation(len(lengths))
        order = sorted(range(len(lengths)), key=lambda number: (lengths[number], jitter[number]))
        epoch: list[list[int]] = [[]]
        for number in order:
            if epoch[-1] and (len(epoch[-1]) + 1) * lengths[number] > settings.batch_tokens:
                epoch.append([])
            epoch[-1].append(number)
        batches += [epoch[place] for place in generator.permutation(len(epoch)) if epoch[place]]
    return batches


def _loss(model: LlamaForCausalLM, windows: list[list[int]]) -> torch.Tensor:
    width = max(map(len, windows))
    ids = torch.zeros(len(windows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, window in enumerate(windows):
        ids[row, : len(window)] = torch.tensor(window)
        mask[row, : len(window)] = 1
    labels = ids.masked_fill(mask == 0, -100)
    loss: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    return loss
