"""What becomes of a tiny random model of an architecture: right, refused by a sentence, or wrong.

Right means: its checkpoint is loaded as anyone's, some texts of unequal length are computed in the batches that a run
would make, and every gradient of every tracked layer is that of autograd on the weights, one text at a time, without
padding or mask.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from dataworth.storage.errors import InputError
from dataworth.tasks.capture.passes import gradient_rows
from dataworth.tasks.corpus.batches import batches_by_length, padded_batch
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.layers import coverage
from dataworth.tasks.model.loading import LoadedModel, load
from dataworth.tasks.model.plain import gradient_capture
from dataworth.tasks.projection.bases import projections_of
from dataworth.tasks.projection.config import ProjectionConfig
from tests.conformance.families import VOCABULARY, tiny_configuration
from tests.reference.dense import negative_log_likelihood

__all__ = ["Outcome", "outcome_of"]

N_CLASSES = 3
# Of the largest gradient of a text; float32 leaves less than a hundredth of it.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Outcome:
    """What became of an architecture.

    Args:
        status: `right`, `refused`, `wrong`, or `not built`: transformers makes no small model of it here.
        sentence: why it was refused or not built; what is to be known of one that is right.
        error: largest difference of a gradient, of the largest gradient.
        tracked: share of the parameters that are tracked.
        tracked_of_all: the same where all parameters are asked for.
        is_slower: where all are asked for, batches are smaller.
    """

    status: str
    sentence: str = ""
    error: float = 0.0
    tracked: float = 0.0
    tracked_of_all: float = 0.0
    is_slower: bool = False


def outcome_of(kind: str, folder: Path, *, classifies: bool) -> Outcome:
    """Try an architecture.

    Args:
        kind: its model type.
        folder: for its checkpoint; must not exist.
        classifies: as a sequence classifier, else as a causal language model.
    """
    try:
        _save(kind, folder, classifies=classifies)
    except Exception as error:  # whatever transformers raises for a configuration that the rule made
        return Outcome("not built", _short(error))
    errors, shares, sentences = [], [], []
    for parameters in ("linear", "all"):
        try:
            loaded = load(ModelConfig(name=str(folder), device="cpu", parameters=parameters))
            errors.append(_error(loaded, _texts(classifies=classifies)))
        except InputError as refusal:
            return Outcome("refused", _short(str(refusal).replace(str(folder), kind)))
        found = coverage(loaded.model, loaded.layers)
        shares.append(found.n_tracked / found.n_parameters)
        sentences.append(loaded.reading.sentence or "")
    error = max(errors)
    status = "right" if error <= TOLERANCE else "wrong"
    return Outcome(status, sentences[0], error, *shares, is_slower=sentences[0] != sentences[1])


def _short(error: Exception | str) -> str:
    return " ".join(str(error).split())[:240] or type(error).__name__


def _save(kind: str, folder: Path, *, classifies: bool) -> None:
    auto = hf.AutoModelForSequenceClassification if classifies else hf.AutoModelForCausalLM
    settings: dict[str, Any] = {"num_labels": N_CLASSES}
    if not classifies:  # an encoder that can also be a decoder
        settings = {"is_decoder": True} if hasattr(hf.CONFIG_MAPPING[kind](), "is_decoder") else {}
    torch.manual_seed(0)
    model = auto.from_config(tiny_configuration(kind, **settings)).float()
    with torch.no_grad():
        for parameter in model.parameters():  # larger than drawn, so that every gradient counts
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    _tokenizer(classifies=classifies).save_pretrained(folder)


def _tokenizer(*, classifies: bool) -> Any:
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(4, VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "<s> $A </s>" if classifies else "<s> $A"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _texts(*, classifies: bool) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    drawn = (rng.integers(4, VOCABULARY, length) for length in (6, 11, 7, 5, 11, 4))
    return [np.concatenate([[1], ids, [2] if classifies else []]).astype(np.int64) for ids in drawn]


def _error(loaded: LoadedModel, rows: list[np.ndarray]) -> float:
    """Largest difference between rows as a run computes them and autograd's, of the largest of autograd's."""
    projections = projections_of(loaded.layers, ProjectionConfig(kind="identity"))
    classes = torch.arange(len(rows)) % N_CLASSES
    found = np.empty((len(rows), sum(projection.n_columns for projection in projections)))
    with gradient_capture(loaded, projections) as capture:
        lengths = np.array([len(row) for row in rows])
        for batch in batches_by_length(lengths, 4096, loaded.reading.batching):
            chosen, unmasked = [rows[number] for number in batch], np.zeros(len(batch), int)
            arrays = padded_batch(chosen, unmasked, loaded.reading.pad_token)
            ids, mask, labels = (torch.from_numpy(array) for array in arrays)
            targets = labels if loaded.labels is None else classes[batch]
            found[batch] = gradient_rows(*loaded.halves, capture, ids, mask, targets)[0].numpy()
    texts = zip(map(torch.from_numpy, rows), classes.tolist(), strict=True)
    right = np.stack([_by_autograd(loaded, text, label) for text, label in texts])
    difference = np.abs(found - right).max()
    return float(difference / np.abs(right).max()) if np.isfinite(difference) else float("inf")


def _by_autograd(loaded: LoadedModel, row: torch.Tensor, label: int) -> np.ndarray:
    parameters = {id(p): p for layer in loaded.layers for p, _ in layer.leaves.values()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    if loaded.labels is None:
        loss = negative_log_likelihood(loaded.model, row, row)
    else:
        loss = -loaded.model(input_ids=row[None]).logits[0].log_softmax(-1)[label]
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    by_parameter = {
        key: torch.zeros_like(parameter) if gradient is None else gradient
        for (key, parameter), gradient in zip(parameters.items(), gradients, strict=True)
    }
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    parts = [
        [by_parameter[id(p)] if number is None else by_parameter[id(p)][number] for p, number in layer.leaves.values()]
        for layer in loaded.layers
    ]
    matrices = [layer.matrix(tensors) for layer, tensors in zip(loaded.layers, parts, strict=True)]
    return np.concatenate([matrix.flatten().numpy() for matrix in matrices])
