"""The step that computes the projected gradients of a corpus and stores them shard by shard."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.encoding import EncodedRows
from dataworth.storage.errors import DataworthError, InputError, RowRangeError, StoreError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.layers import LayerStore
from dataworth.storage.locations import StoreFolders
from dataworth.storage.ref import StoreRef, fingerprint
from dataworth.storage.segments import Segment
from dataworth.storage.spelling import setting
from dataworth.tasks.capture.gradients import GradientCapture
from dataworth.tasks.capture.hooks import CaptureError
from dataworth.tasks.capture.memory import measured_batch_tokens
from dataworth.tasks.capture.passes import backward_losses, gradient_rows
from dataworth.tasks.capture.positions import ProductCapture
from dataworth.tasks.corpus.batches import batches_by_length, corpus_batch
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.gradients.directions import row_attributes, row_layers
from dataworth.tasks.gradients.order import content_order, row_windows
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import LoadedModel, load
from dataworth.tasks.model.plain import gradient_capture
from dataworth.tasks.progress import Progress, progress, run_logger
from dataworth.tasks.projection.logra import stored_directions, stored_projections
from dataworth.tasks.torchrun import processes

__all__ = ["ACTIONS", "gradient_store", "index_gradients"]

ALGORITHM = 1


def index_gradients(
    store: str, model: ModelConfig, corpus: StoreRef, bases: StoreRef, gradients: GradientsConfig, what: str
) -> StoreRef:
    """Projected gradients of every document not yet stored; those already there are not computed again.

    Processes started together by torchrun share the shards.

    Args:
        store: root of the stores.
        model: the checkpoint.
        corpus: documents or queries.
        bases: of the projection.
        gradients: batch size and stored data type.
        what: names the work for a person.

    Raises:
        StoreBusyError: another run is writing the same store.
        InputError: a gradient does not fit the stored data type, or a layer cannot be captured.
    """
    documents = CorpusStore.open(corpus)
    target = gradient_store(store, model, documents, bases, gradients)
    n_windows = documents.column("n_windows").to_numpy()
    if not target.lacks(documents.contents, n_windows):  # nothing to write: no lock, which a store to be read has not
        run_logger().info("%s: 0 of %s examples to compute", what, f"{documents.n_examples:,}")
        return target.ref
    order = content_order(documents.contents, documents.column("n_tokens").to_numpy())
    with target.writer():
        segments = target.plan(documents.contents[order], n_windows[order])
        open_shards = [(segment.name, shard) for segment in segments for shard in segment.open_shards()]
        n_rows = sum(_n_rows(segment, shard) for segment in segments for shard in segment.open_shards())
        run_logger().info("%s: %s of %s examples to compute", what, f"{n_rows:,}", f"{documents.n_examples:,}")
        if open_shards:
            arguments = (model, corpus, bases, gradients, target.ref, open_shards)
            processes().order("index", {"arguments": arguments})
            with progress(f"gradients of {what}", n_rows, "example") as bar:
                _index(*arguments, bar=bar)
    return target.ref


def gradient_store(
    store: str, model: ModelConfig, corpus: CorpusStore, bases: StoreRef, gradients: GradientsConfig
) -> GradientStore:
    """The store for gradients of this model, projection, tokenisation and data type, empty if there was none."""
    made = LayerStore.open(bases)
    parts = {
        "gradients": ALGORITHM,
        "model": load(model).fingerprint,
        "bases": bases.fingerprint,
        **corpus.attributes,
        "dtype": gradients.row_dtype,
        **row_attributes(made),
    }
    folder = StoreFolders(store).gradients
    return GradientStore.create(folder, fingerprint(parts), row_layers(made), gradients.row_dtype, parts)


def _n_rows(segment: Segment, shard: int) -> int:
    rows = segment.rows(shard)
    return rows.stop - rows.start


def _index(
    model: ModelConfig,
    corpus: StoreRef,
    bases: StoreRef,
    gradients: GradientsConfig,
    target: StoreRef,
    open_shards: list[tuple[str, int]],
    *,
    bar: Progress | None = None,
) -> None:
    """Compute and write this process's part of the open shards; returns when every process has written its own."""
    place = processes()
    store = GradientStore.open(target)
    segments = {segment.name: segment for segment in store.segments()}
    indexer = _Indexer(load(model), LayerStore.open(bases), CorpusStore.open(corpus), gradients)
    # One thread writes a shard while the next is computed; leaving the block waits for it.
    with ThreadPoolExecutor(1) as writer:
        written: Future[None] | None = None
        for first in range(0, len(open_shards), place.size):
            together = [(segments[name], shard) for name, shard in open_shards[first : first + place.size]]
            if place.rank < len(together):
                segment, shard = together[place.rank]
                computed = indexer.computed(segment, shard)
                if written is not None:
                    written.result()
                written = writer.submit(segment.write_shard, shard, *computed)
            if indexer.sharded:
                indexer.keep_step(together, place.rank)
            if bar is not None:
                bar.advance(sum(_n_rows(segment, shard) for segment, shard in together))
        if written is not None:
            written.result()
    place.wait()


class _Indexer:
    """Computes shards of one corpus under one model."""

    def __init__(self, loaded: LoadedModel, bases: LayerStore, corpus: CorpusStore, config: GradientsConfig) -> None:
        self._loaded, self._corpus, self._config = loaded, corpus, config
        self._projections = [entry.to(loaded.device, loaded.model.dtype) for entry in stored_projections(bases)]
        try:
            self._directions = stored_directions(bases, loaded.device)
        except torch.OutOfMemoryError:
            raise StoreError(
                "the device has not enough memory for the directions of all queries: ask fewer at a time, or allow a "
                f"larger {setting('gradients.query_error')}"
            ) from None
        self._n_columns = sum(layer.n_columns for layer in row_layers(bases))
        self._windows_of: dict[str, np.ndarray] = {}
        measured = config.batch_tokens or measured_batch_tokens(self._trial, *self._longest())
        self._batch_tokens = processes().agreed(measured)

    @property
    def sharded(self) -> bool:
        return self._loaded.sharded

    def _longest(self) -> tuple[int, torch.device]:
        return int(self._corpus.windows["n_tokens"].max()), self._loaded.device

    def _trial(self, n_rows: int) -> None:
        """One pass over copies of the longest window."""
        longest = np.full(n_rows, int(self._corpus.windows["n_tokens"].argmax()))
        with self._capture() as capture:
            self._rows(capture, self._batch(longest))

    def _capture(self) -> GradientCapture | ProductCapture:
        """Of gradients, or of their products with the queries'."""
        if self._directions is None:
            return gradient_capture(self._loaded, self._projections)
        return ProductCapture([layer.uses for layer in self._loaded.layers], self._projections, self._directions, 1)

    def _rows(
        self, capture: GradientCapture | ProductCapture, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and losses of one batch."""
        if isinstance(capture, GradientCapture):
            return gradient_rows(*self._loaded.halves, capture, *inputs)
        capture.expect(len(inputs[0]))
        losses = backward_losses(*self._loaded.halves, *inputs, capture)
        return capture.products, losses

    def _batch(self, windows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return corpus_batch(self._corpus, windows, self._loaded.device, self._loaded.reading.pad_token)

    def _windows(self, segment: Segment, shard: int) -> np.ndarray:
        """The windows whose gradients are the rows of a shard."""
        if segment.name not in self._windows_of:
            self._windows_of[segment.name] = row_windows(
                segment.contents, segment.first_rows, self._corpus.contents, self._corpus.first_windows
            )
        return self._windows_of[segment.name][segment.rows(shard)]

    def _batches(self, windows: np.ndarray) -> list[np.ndarray]:
        lengths = self._corpus.windows["n_tokens"][windows]
        return batches_by_length(lengths, self._batch_tokens, self._loaded.reading.batching)

    def computed(self, segment: Segment, shard: int) -> tuple[EncodedRows, dict[str, np.ndarray]]:
        """The rows of a shard as they are stored there, and its example columns."""
        windows = self._windows(segment, shard)
        try:
            rows, losses = self._fitting(windows)
        except CaptureError as error:
            raise InputError(str(error)) from error
        except DataworthError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:  # a model's code decides which texts it cannot read
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"the model cannot compute some of {self._named(windows)} ({reason})") from error
        try:
            stored = segment.encoded(rows)
        except RowRangeError as error:
            raise InputError(f"the gradient of {self._named(windows[error.row :][:1])} {error.reason}") from None
        return stored, {"n_tokens": self._corpus.windows["n_tokens"][windows], "loss": losses}

    def _named(self, windows: np.ndarray) -> str:
        """The documents of some windows, for a message."""
        ids = self._corpus.column("document_id")
        named = [repr(ids[int(number)].as_py()) for number in np.unique(self._corpus.windows["document"][windows])[:3]]
        return f"document {named[0]}" if len(named) == 1 else f"the documents {', '.join(named)}"

    def _fitting(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`_window_gradients`, in smaller batches from here on where the device runs out of memory."""
        while True:
            try:
                return self._window_gradients(windows)
            except torch.OutOfMemoryError:
                longest = int(self._corpus.windows["n_tokens"][windows].max())
                if self._batch_tokens <= longest or self._loaded.sharded:
                    raise StoreError(
                        f"the device has not enough memory for {max(longest, self._batch_tokens)} tokens: lower "
                        f"{setting('corpus.max_length')} or {setting('gradients.batch_tokens')}, or pass "
                        f"{setting('model.dtype')} bfloat16"
                    ) from None
            self._batch_tokens = max(longest, self._batch_tokens // 2)
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()
            run_logger().warning("out of memory: going on with batches of %s tokens", self._batch_tokens)

    def _window_gradients(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, n_columns) float32 gradients and (n,) losses, computed in batches of similar length.

        On a GPU rows go to pinned memory while the next batch is computed.
        """
        device = self._loaded.device
        on_gpu = device.type == "cuda"
        rows = torch.empty((len(windows), self._n_columns), pin_memory=on_gpu)
        losses = torch.empty(len(windows), pin_memory=on_gpu)
        places = np.empty(len(windows), np.int64)
        first = 0
        with self._capture() as capture:
            for batch in self._batches(windows):
                batch_rows, batch_losses = self._rows(capture, self._batch(windows[batch]))
                end = first + len(batch)
                rows[first:end].copy_(batch_rows, non_blocking=on_gpu)
                losses[first:end].copy_(batch_losses, non_blocking=on_gpu)
                places[batch] = np.arange(first, end)
                first = end
        if on_gpu:
            torch.cuda.synchronize(device)
        return rows.numpy()[places], losses.numpy()[places]

    def keep_step(self, together: list[tuple[Segment, int]], rank: int) -> None:
        """Passes without use, where another process has more of them: sharded weights are gathered by all at once."""
        counts = [len(self._batches(self._windows(segment, shard))) for segment, shard in together]
        own = counts[rank] if rank < len(counts) else 0
        segment, shard = together[0]
        inputs = self._batch(self._windows(segment, shard)[:1])
        with self._capture() as capture:
            for _ in range(max(counts) - own):
                self._rows(capture, inputs)


def _follow_index(arguments: tuple[Any, ...]) -> None:
    _index(*arguments)


ACTIONS = {"index": _follow_index}
