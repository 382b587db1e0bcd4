"""Prefect task that computes the projected gradients of a corpus and stores them shard by shard."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from prefect import task

from storage.corpus import CorpusStore
from storage.errors import InputError, StoreError
from storage.gradients import GradientStore, Segment
from storage.layers import LayerStore
from storage.locations import StoreFolders
from storage.ref import StoreRef, fingerprint
from tasks.capture.hooks import CaptureError, GradientCapture
from tasks.capture.passes import gradient_rows
from tasks.corpus.batches import batches_by_length, corpus_batch
from tasks.gradients.config import GradientsConfig
from tasks.gradients.order import content_order, row_windows
from tasks.model.config import ModelConfig
from tasks.model.loading import LoadedModel, load
from tasks.progress import progress, run_logger
from tasks.projection.logra import LayerProjection, stored_projections

__all__ = ["index_gradients"]

ALGORITHM = 1


@task(name="index-gradients", task_run_name="gradients of {what}")
def index_gradients(
    store: str, model: ModelConfig, corpus: StoreRef, bases: StoreRef, gradients: GradientsConfig, what: str
) -> StoreRef:
    """Projected gradients of every document not yet stored; those already there are not computed again.

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
    loaded = load(model)
    documents = CorpusStore.open(corpus)
    basis_store = LayerStore.open(bases)
    parts = {
        "gradients": ALGORITHM,
        "model": loaded.fingerprint,
        "bases": bases.fingerprint,
        **documents.manifest["attributes"],
        "dtype": gradients.dtype,
    }
    target = GradientStore.create(
        StoreFolders(Path(store)).gradients, fingerprint(parts), basis_store.layers, gradients.dtype, parts
    )
    n_windows = documents.column("n_windows").to_numpy()
    order = content_order(documents.contents, documents.column("n_tokens").to_numpy())
    with target.writer():
        segments = target.plan(documents.contents[order], n_windows[order])
        n_rows = sum(_n_rows(segment, shard) for segment in segments for shard in segment.open_shards())
        run_logger().info("%s: %s of %s examples to compute", what, f"{n_rows:,}", f"{documents.n_examples:,}")
        if n_rows:
            indexer = _Indexer(loaded, stored_projections(basis_store), documents, gradients)
            # One thread writes a shard while the next is computed; leaving the block waits for it.
            with progress(f"gradients of {what}", n_rows, "example") as bar, ThreadPoolExecutor(1) as writer:
                written: Future[None] | None = None
                for segment, shard, computed in indexer.shards(segments):
                    if written is not None:
                        written.result()
                    written = writer.submit(segment.write_shard, shard, *computed)
                    bar.advance(_n_rows(segment, shard))
                if written is not None:
                    written.result()
    return target.ref


def _n_rows(segment: Segment, shard: int) -> int:
    rows = segment.rows(shard)
    return rows.stop - rows.start


class _Indexer:
    """Computes shards of one corpus under one model."""

    def __init__(
        self, loaded: LoadedModel, projections: list[LayerProjection], corpus: CorpusStore, config: GradientsConfig
    ) -> None:
        self._loaded, self._corpus, self._config = loaded, corpus, config
        self._projections = [projection.to(loaded.device, loaded.model.dtype) for projection in projections]
        self._n_columns = sum(projection.n_columns for projection in projections)

    def shards(
        self, segments: list[Segment]
    ) -> Iterator[tuple[Segment, int, tuple[np.ndarray, dict[str, np.ndarray]]]]:
        """Segment, shard, and what is to be written there, for every shard that is not there yet."""
        for segment in segments:
            windows = row_windows(
                segment.contents, segment.first_rows, self._corpus.contents, self._corpus.first_windows
            )
            for shard in segment.open_shards():
                yield segment, shard, self._computed(windows[segment.rows(shard)])

    def _computed(self, windows: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(n, n_columns) gradients in the stored type and the example columns of some windows."""
        try:
            rows, losses = self._window_gradients(windows)
        except CaptureError as error:
            raise InputError(str(error)) from error
        except torch.OutOfMemoryError:
            raise StoreError(
                f"the device has not enough memory for {self._config.batch_tokens} tokens: "
                "lower --gradients.batch_tokens"
            ) from None
        with np.errstate(over="ignore"):
            stored = rows.astype(self._config.dtype)
        finite = np.isfinite(stored).all(axis=1)
        if not finite.all():
            document = self._corpus.windows["document"][windows[int(np.argmin(finite))]]
            name = self._corpus.column("document_id")[int(document)].as_py()
            fits = "does not fit float16: pass --gradients.dtype float32"
            raise InputError(
                f"the gradient of document {name!r} {fits if np.isfinite(rows).all() else 'is not finite'}"
            )
        return stored, {"n_tokens": self._corpus.windows["n_tokens"][windows], "loss": losses}

    def _window_gradients(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, n_columns) float32 gradients and (n,) losses, computed in batches of similar length."""
        rows = np.empty((len(windows), self._n_columns), np.float32)
        losses = np.empty(len(windows), np.float32)
        lengths = self._corpus.windows["n_tokens"][windows]
        with GradientCapture([layer.module for layer in self._loaded.layers], self._projections) as capture:
            for batch in batches_by_length(lengths, self._config.batch_tokens):
                inputs = corpus_batch(self._corpus, windows[batch], self._loaded.device)
                batch_rows, batch_losses = gradient_rows(self._loaded.model, capture, *inputs)
                rows[batch] = batch_rows.cpu().numpy()
                losses[batch] = batch_losses.cpu().numpy()
        return rows, losses
