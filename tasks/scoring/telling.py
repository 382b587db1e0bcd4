"""Which tokens of a passage, and which of an answer, a score comes from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.capture.hooks import Use
from dataworth.tasks.capture.losses import IGNORED
from dataworth.tasks.capture.passes import backward_losses
from dataworth.tasks.capture.positions import PositionCapture, ProductCapture
from dataworth.tasks.corpus.batches import corpus_batch
from dataworth.tasks.model.plain import Model
from dataworth.tasks.projection.logra import LayerProjection

__all__ = ["Teller", "pieces"]

# Of the copies of an answer that are computed together, one a token.
TOKENS_AT_ONCE = 2048
# Of a letter that is not whole yet, at most so many tokens; and those that are read again with the next.
UNFINISHED, MOST_PIECES, CONTEXT = "\N{REPLACEMENT CHARACTER}", 8, 6


@dataclass(frozen=True)
class Teller:
    """Multiplies gradients with directions, token by token.

    Args:
        model: frozen.
        projections: of its layers, on its device.
        queries: (n_queries, n_columns) of each layer, where directions are given as sums of those; None: in the
            projected space.
    """

    model: Model
    projections: Sequence[LayerProjection]
    queries: Sequence[Tensor] | None = None

    def of_passage(
        self, corpus: CorpusStore, window: int, directions: Float[np.ndarray, "m c"]
    ) -> Float[np.ndarray, "t+1 m"]:
        """What each token of a window gives to the products of its gradient with directions; they add up to these.

        Of a language model the part of a position stands at the token that is predicted there, the next one. The last
        row is of no token: what layers give that read other vectors.

        Args:
            corpus: of the window.
            window: its number.
            directions: in the projected space, or how much of each query.
        """
        batch = self._batch(corpus, window)
        with PositionCapture(*self._captured, self._rows(directions), int(batch[0].shape[1])) as capture:
            backward_losses(*self.model.halves, *batch, capture)
            found = capture.products
        if self.queries is not None:
            found = found @ torch.from_numpy(directions.T.astype(np.float64)).to(found)
        return _at_targets(found, predicts=self.model.n_classes is None).cpu().numpy()

    def of_answer(
        self, corpus: CorpusStore, window: int, directions: Float[np.ndarray, "m c"]
    ) -> Float[np.ndarray, "t m"]:
        """What the loss of each token of a window gives; 0 where there is no loss. They add up as those of a passage.

        Of a classifier, whose loss is of no token: no rows.

        Args:
            corpus, window, directions: as for `of_passage`.
        """
        if self.model.n_classes is not None:
            return np.zeros((0, len(directions)))
        input_ids, mask, labels = self._batch(corpus, window)
        places = (labels[0] != IGNORED).nonzero()[:, 0]
        places = places[places > 0]  # the first token is predicted by nothing
        found = np.zeros((int(input_ids.shape[1]), len(directions)))
        at_once = 1 if self.model.reading.batching == "alone" else max(1, TOKENS_AT_ONCE // int(input_ids.shape[1]))
        first = 0
        while first < len(places):
            some = places[first : first + at_once]
            own = torch.full_like(labels, IGNORED).repeat(len(some), 1)
            own[torch.arange(len(some)), some] = labels[0, some]
            copies = (input_ids.repeat(len(some), 1), mask.repeat(len(some), 1), own)
            try:
                with ProductCapture(*self._captured, self._rows(directions), len(some)) as capture:
                    backward_losses(*self.model.halves, *copies, capture)
                    found[some.cpu().numpy()] = capture.products.cpu().numpy()
            except torch.OutOfMemoryError:
                if at_once == 1:
                    raise
                at_once = max(1, at_once // 2)
                continue
            first += len(some)
        return found

    def n_answer_tokens(self, corpus: CorpusStore, window: int) -> int:
        """Tokens that `of_answer` computes."""
        input_ids, _, labels = self._batch(corpus, window)
        return (
            0 if self.model.n_classes is not None else int((labels[0, 1:] != IGNORED).sum()) * int(input_ids.shape[1])
        )

    @property
    def _captured(self) -> tuple[list[tuple[Use, ...]], Sequence[LayerProjection]]:
        return [layer.uses for layer in self.model.layers], self.projections

    def _batch(self, corpus: CorpusStore, window: int) -> tuple[Tensor, Tensor, Tensor]:
        return corpus_batch(corpus, np.array([window]), self.model.device, self.model.reading.pad_token)

    def _rows(self, directions: np.ndarray) -> Sequence[Tensor]:
        """A matrix a layer."""
        if self.queries is not None:
            return self.queries
        moved = torch.from_numpy(np.ascontiguousarray(directions, np.float32)).to(self.model.device)
        return moved.split([projection.n_columns for projection in self.projections], dim=1)


def _at_targets(parts: Tensor, *, predicts: bool) -> Tensor:
    """Each part one token later; what the last position gives, which predicts nothing, is of no token."""
    if not predicts:
        return parts
    shifted = torch.zeros_like(parts)
    shifted[1:] = parts[:-1]
    shifted[-1] += parts[-1]
    return shifted


def pieces(decode: Callable[[list[int]], str], ids: Sequence[int]) -> list[str]:
    """The text that each token adds to that of those before it; a letter of several tokens is the last one's.

    Args:
        decode: from token ids to text; asked for a few tokens at a time, since what a token says may depend on those
            just before it, and on no others.
        ids: of a window.
    """
    found: list[str] = []
    start = said = 0  # tokens from `said` on have not been said yet; those from `start` on are read with them
    for end in range(1, len(ids) + 1):
        before, text = decode(list(ids[start:said])), decode(list(ids[start:end]))
        if text.endswith(UNFINISHED) and end < len(ids) and end - said < MOST_PIECES:
            found.append("")
            continue
        found.append(text[len(before) :] if text.startswith(before) else decode(list(ids[said:end])))
        said = end
        start = max(start, said - CONTEXT)
    return found
