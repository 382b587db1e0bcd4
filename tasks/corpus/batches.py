"""Batches of examples of similar length, bounded by their tokens, padding included."""

import numpy as np
import torch
from torch import Tensor

from dataworth.storage.corpus import CorpusStore, token_ids
from dataworth.storage.schema import NO_CLASS
from dataworth.tasks.model.reading import Batching

__all__ = ["batches_by_length", "corpus_batch", "n_targets", "padded_batch", "window_targets"]

IGNORED = -100


def batches_by_length(
    lengths: np.ndarray, batch_tokens: int, batching: Batching, most: int | None = None
) -> list[np.ndarray]:
    """Positions of examples in batches, longest first, so that memory peaks at once and little is padding.

    Args:
        lengths: (n_examples,) tokens of each.
        batch_tokens: most tokens of a batch, rows times the longest row; a longer example is a batch of its own.
        batching: what may be in one batch (see dataworth.tasks.model.reading.Reading).
        most: examples of a batch; None: as many as fit.

    Returns:
        Arrays of positions; every position comes once.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    first = 0
    while first < len(order):
        longest = int(lengths[order[first]])
        end = first + (1 if batching == "alone" else max(1, batch_tokens // max(1, longest)))
        if batching == "equal":
            end = min(end, first + int((lengths[order[first:]] == longest).sum()))
        if most is not None:
            end = min(end, first + most)
        batches.append(order[first:end])
        first = end
    return batches


def padded_batch(
    rows: list[np.ndarray], n_masked: np.ndarray, pad_token: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right-padded arrays of one batch.

    Args:
        rows: token ids of each example, complements (negative) of those whose loss is not taken.
        n_masked: (n_examples,) first tokens without loss.
        pad_token: id that fills the rest; it is masked everywhere, but models look at it, too (see Reading).

    Returns:
        input_ids, attention_mask, labels, each (n_examples, n_tokens) int64; labels are -100 where there is no loss.
    """
    width = max(len(row) for row in rows)
    input_ids = np.full((len(rows), width), pad_token, np.int64)
    attention_mask = np.zeros_like(input_ids)
    labels = np.full_like(input_ids, IGNORED)
    for number, row in enumerate(rows):
        input_ids[number, : len(row)] = token_ids(row)
        attention_mask[number, : len(row)] = 1
        taught = row[n_masked[number] :]
        labels[number, n_masked[number] : len(row)] = np.where(taught < 0, IGNORED, taught)
    return input_ids, attention_mask, labels


def corpus_batch(
    corpus: CorpusStore, windows: np.ndarray, device: torch.device, pad_token: int
) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids, attention_mask and labels of some windows of a corpus, on a device (see `padded_batch`).

    Labels of a classifier's corpus are the (n_examples,) classes instead.
    """
    input_ids, attention_mask, labels = padded_batch(
        [corpus.stored_tokens(int(window)) for window in windows], corpus.windows["n_masked"][windows], pad_token
    )
    classes = corpus.windows["label"][windows]
    if len(classes) and classes[0] != NO_CLASS:
        labels = classes.astype(np.int64)
    return _moved(input_ids, device), _moved(attention_mask, device), _moved(labels, device)


def _moved(array: np.ndarray, device: torch.device) -> Tensor:
    """On a GPU, from pinned memory, so that the copy does not wait for what is computed there."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def n_targets(labels: Tensor) -> Tensor:
    """(n_examples,) targets of each example: labels that carry loss, of which the first token is none; or one class."""
    if labels.dim() == 1:
        return torch.ones_like(labels)
    return (labels[:, 1:] != IGNORED).sum(dim=1)


def window_targets(corpus: CorpusStore) -> np.ndarray:
    """(n_windows,) targets of each of a corpus' windows: tokens whose loss is taken, or one class.

    The first token of a window has nothing before it to be told from.
    """
    windows = corpus.windows
    of_tokens = windows["n_tokens"] - np.maximum(windows["n_masked"], 1) - corpus.n_untaught
    return np.where(windows["label"] != NO_CLASS, 1, of_tokens)
