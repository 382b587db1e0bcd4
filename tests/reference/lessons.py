"""What was trained to learn two lessons of MATH.md, kept beside this file so that their tests train next to nothing.

`python -m tests.reference.lessons` trains it again (minutes): digits on 100 half-subsets with 5 seeds, and a character
model of two layers on 64 half-subsets with 3 seeds.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dataworth.tasks.corpus.batches import n_targets
from dataworth.tasks.corpus.draws import label_uniforms
from dataworth.tasks.corpus.stdlib import standard_library_documentation
from dataworth.tasks.counterfactual.designs import random_subsets
from dataworth.tasks.counterfactual.digits import N_TRAINING, digits
from dataworth.tasks.model.halves import whole
from dataworth.tasks.model.layers import tracked_layers
from dataworth.tasks.model.reading import Reading
from dataworth.tasks.training.optimizers import Adam, Clipping
from dataworth.tasks.training.recipes import CheckpointReads, Recipe, Step
from dataworth.tasks.training.small_model import CLIPPED, SmallModel, learning_rates, train_steps

__all__ = ["CharacterModel", "Characters", "character_lesson", "character_recipe", "digits_lesson"]

KEPT = Path(__file__).with_suffix(".npz")
DIGITS_SUBSETS, DIGITS_SEEDS = 100, 5
SUBSETS, SEEDS = 64, 3
DOCUMENTS, QUERIES, LENGTH = 320, 64, 64
SETTINGS = SmallModel(
    vocabulary=128, hidden=48, layers=2, heads=4, intermediate=96, positions=LENGTH, epochs=12,
    batch_tokens=16 * LENGTH, learning_rate=4e-3, weight_decay=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class Characters:
    """Texts of LENGTH ASCII characters, each a document.

    Args:
        tokens: (n, LENGTH).
    """

    tokens: np.ndarray

    @property
    def n_examples(self):
        return len(self.tokens)

    @property
    def lengths(self):
        return np.full(len(self.tokens), self.tokens.shape[1])

    @property
    def documents(self):
        return np.arange(len(self.tokens))

    @property
    def n_documents(self):
        return len(self.tokens)

    def batch(self, numbers, device, pad_token):
        rows = torch.from_numpy(self.tokens[numbers].astype(np.int64)).to(device)
        return rows, torch.ones_like(rows), rows

    def uniforms(self, numbers, labels, draws, seed):
        contents = [self.tokens[number].tobytes() for number in numbers]
        return label_uniforms(contents, [0] * len(contents), n_targets(labels).tolist(), draws, seed)


@dataclass(frozen=True)
class CharacterModel:
    """A frozen language model in memory."""

    model: LlamaForCausalLM
    n_classes: None = None

    @property
    def layers(self):
        return tuple(tracked_layers(self.model))

    @property
    def halves(self):
        return whole(self.model)

    @property
    def device(self):
        return torch.device("cpu")

    @property
    def reading(self):
        return Reading()


def _network(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SETTINGS.vocabulary, hidden_size=SETTINGS.hidden, num_hidden_layers=SETTINGS.layers,
            num_attention_heads=SETTINGS.heads, num_key_value_heads=SETTINGS.heads,
            intermediate_size=SETTINGS.intermediate, max_position_embeddings=LENGTH, use_cache=False,
        )
    )  # fmt: skip


def _batches(n, seed):
    generator = np.random.default_rng(seed)
    size = SETTINGS.batch_tokens // LENGTH
    order = np.concatenate([generator.permutation(n) for _ in range(SETTINGS.epochs)])
    return [order[first : first + size] for first in range(0, len(order), size)]


def character_recipe(seed):
    """The training of the character model on all documents, for a replay."""
    model, batches = _network(seed), _batches(DOCUMENTS, seed)
    rates = learning_rates(len(batches), SETTINGS.learning_rate)
    return Recipe(
        model=model,
        trained=tuple(name for name, _ in model.named_parameters()),
        steps=[
            Step((batch,), rate, float(len(batch) * (LENGTH - 1))) for batch, rate in zip(batches, rates, strict=True)
        ],
        examples=Characters(np.load(KEPT)["texts"][:DOCUMENTS]),
        reads=CheckpointReads(torch.device("cpu"), 0),
        optimizer=Adam(),
        clipping=Clipping(CLIPPED),
    )


def _trained(tokens, members, seed):
    model, rows = _network(seed), torch.from_numpy(tokens[members].astype(np.int64))
    batches = _batches(len(rows), seed)
    train_steps(
        model.train().parameters(),
        len(batches),
        lambda step: model(input_ids=rows[batches[step]], labels=rows[batches[step]]).loss,
        SETTINGS,
    )
    return model.eval().requires_grad_(False)


def _losses(model, tokens):
    rows = torch.from_numpy(tokens.astype(np.int64))
    log_p = model(input_ids=rows).logits[:, :-1].double().log_softmax(-1)
    return -log_p.gather(-1, rows[:, 1:, None]).sum(dim=(1, 2)).numpy()


def _texts():
    found = [row["text"].encode("ascii", "ignore") for row in standard_library_documentation()]
    found = [np.frombuffer(text[:LENGTH], np.uint8) for text in found if len(text) >= LENGTH]
    order = np.random.default_rng(0).permutation(len(found))[: DOCUMENTS + QUERIES]
    return np.stack([found[number] for number in order])


def _of_characters(seed):
    """(m, q) losses after training on every subset."""
    torch.set_num_threads(1)
    texts = _texts()
    documents, queries = texts[:DOCUMENTS], texts[DOCUMENTS:]
    masks = random_subsets(DOCUMENTS, SUBSETS, 0.5, 0)
    return [_losses(_trained(documents, mask, seed), queries) for mask in masks]


def _of_digits(seed):
    torch.set_num_threads(1)
    problem = digits()
    masks = random_subsets(N_TRAINING, DIGITS_SUBSETS, 0.5, 0)
    return [problem.losses_after(mask, seed) for mask in masks]


def main() -> None:
    """Train everything and keep it."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        characters = np.array(list(pool.map(_of_characters, range(SEEDS))))
        of_digits = np.array(list(pool.map(_of_digits, range(DIGITS_SEEDS)))).mean(axis=0)
    texts = _texts()
    weights = _trained(texts[:DOCUMENTS], np.ones(DOCUMENTS, bool), 0).state_dict()
    np.savez_compressed(
        KEPT,
        texts=texts,
        outcomes=-characters.transpose(0, 2, 1).astype(np.float32),
        digits=-of_digits.T.astype(np.float32),
        **{f"weight {name}": tensor.numpy() for name, tensor in weights.items()},
    )


def character_lesson():
    """Model, documents, queries, (m, n) masks and (r, q, m) outcomes."""
    kept = np.load(KEPT)
    model = _network(0)
    weights = {
        name.removeprefix("weight "): torch.from_numpy(kept[name]) for name in kept if name.startswith("weight ")
    }
    model.load_state_dict(weights)
    model.eval().requires_grad_(False)
    texts = kept["texts"]
    masks = random_subsets(DOCUMENTS, SUBSETS, 0.5, 0)
    outcomes = kept["outcomes"].astype(np.float64)
    return CharacterModel(model), Characters(texts[:DOCUMENTS]), Characters(texts[DOCUMENTS:]), masks, outcomes


def digits_lesson():
    """(m, n) masks and (q, m) outcomes of the digits, means over the seeds."""
    return random_subsets(N_TRAINING, DIGITS_SUBSETS, 0.5, 0), np.load(KEPT)["digits"].astype(np.float64)


if __name__ == "__main__":
    main()
