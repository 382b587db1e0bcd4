"""Prefect task that computes the projected gradients of a corpus and stores them shard by shard."""

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
        todo = [(segment, shard) for segment in segments for shard in segment.open_shards()]
        n_rows = sum(segment.rows(shard).stop - segment.rows(shard).start for segment, shard in todo)
        run_logger().info("%s: %s of %s examples to compute", what, f"{n_rows:,}", f"{documents.n_examples:,}")
        with progress(f"gradients of {what}", n_rows, "example") as bar:
            for segment, shard in todo:
                _write_shard(segment, shard, loaded, stored_projections(basis_store), documents, gradients)
                bar.advance(segment.rows(shard).stop - segment.rows(shard).start)
    return target.ref


def _write_shard(
    segment: Segment,
    shard: int,
    loaded: LoadedModel,
    projections: list[LayerProjection],
    corpus: CorpusStore,
    config: GradientsConfig,
) -> None:
    windows = row_windows(segment.contents, segment.first_rows, corpus.contents, corpus.first_windows)
    windows = windows[segment.rows(shard)]
    rows, losses = _window_gradients(loaded, projections, corpus, windows, config)
    with np.errstate(over="ignore"):
        stored = rows.astype(config.dtype)
    if not np.isfinite(stored).all():
        name = corpus.column("document_id")[int(corpus.windows["document"][windows[_first_bad_row(stored)]])]
        reason = "does not fit float16: pass --gradients.dtype float32" if np.isfinite(rows).all() else "is not finite"
        raise InputError(f"the gradient of document {str(name)!r} {reason}")
    n_tokens = corpus.windows["n_tokens"][windows]
    segment.write_shard(shard, stored, {"n_tokens": n_tokens, "loss": losses})


def _first_bad_row(rows: np.ndarray) -> int:
    return int(np.argmin(np.isfinite(rows).all(axis=1)))


def _window_gradients(
    loaded: LoadedModel,
    projections: list[LayerProjection],
    corpus: CorpusStore,
    windows: np.ndarray,
    config: GradientsConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """(n, n_columns) float32 gradients and (n,) losses of some windows, computed in batches of similar length."""
    device, dtype = loaded.device, loaded.model.dtype
    on_device = [projection.to(device, dtype) for projection in projections]
    rows = np.empty((len(windows), sum(projection.n_columns for projection in projections)), np.float32)
    losses = np.empty(len(windows), np.float32)
    capture = GradientCapture([layer.module for layer in loaded.layers], on_device)
    try:
        with capture:
            for batch in batches_by_length(corpus.windows["n_tokens"][windows], config.batch_tokens):
                inputs = corpus_batch(corpus, windows[batch], device)
                batch_rows, batch_losses = gradient_rows(loaded.model, capture, *inputs)
                rows[batch] = batch_rows.cpu().numpy()
                losses[batch] = batch_losses.cpu().numpy()
    except CaptureError as error:
        raise InputError(str(error)) from error
    except torch.OutOfMemoryError:
        raise StoreError(
            f"the device has not enough memory for {config.batch_tokens} tokens: lower --gradients.batch_tokens"
        ) from None
    return rows, losses
