"""Prefect task that fits the curvature of the training loss in the projected space."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from prefect import task
from torch import Tensor

from storage.corpus import CorpusStore
from storage.errors import InputError
from storage.layers import LayerStore
from storage.locations import StoreFolders
from storage.ref import StoreRef, fingerprint
from tasks.capture.hooks import CaptureError, GradientCapture
from tasks.capture.passes import gradient_rows, sampled_gradient_rows
from tasks.corpus.batches import batches_by_length, corpus_batch
from tasks.curvature.config import CurvatureConfig
from tasks.curvature.fisher import MOST_COLUMNS, FisherSum
from tasks.model.config import ModelConfig
from tasks.model.loading import LoadedModel, load
from tasks.progress import progress, run_logger
from tasks.projection.logra import stored_projections

__all__ = ["fit_fisher"]

ALGORITHM = 1


@task(name="fit-fisher", task_run_name="fit the {curvature.labels} Fisher")
def fit_fisher(
    store: str, model: ModelConfig, corpus: StoreRef, bases: StoreRef, curvature: CurvatureConfig, batch_tokens: int
) -> StoreRef:
    """The Fisher matrix of every tracked layer in the projected space, on a share of the corpus.

    Damping is no part of it: it is applied when queries are preconditioned.

    Raises:
        InputError: a layer keeps more columns than a dense block may have.
    """
    loaded = load(model)
    documents = CorpusStore.open(corpus)
    basis_store = LayerStore.open(bases)
    largest = max(basis_store.layers, key=lambda layer: int(layer["n_columns"]))
    if largest["n_columns"] > MOST_COLUMNS:
        raise InputError(
            f"--curvature fisher: layer {largest['name']} keeps {largest['k_out']} x {largest['k_in']} columns, "
            f"a dense Fisher holds at most {MOST_COLUMNS}; lower --projection.rank or pass --curvature none"
        )
    settings = curvature.model_dump(exclude={"damping"} if curvature.labels == "sampled" else {"damping", "draws"})
    parts = {
        "fisher": ALGORITHM,
        "model": loaded.fingerprint,
        "bases": bases.fingerprint,
        "corpus": fingerprint(sorted(content.hex() for content in documents.contents.tolist())),
        **documents.manifest["attributes"],
        **settings,
    }
    root, name = StoreFolders(Path(store)).layers, fingerprint(parts)
    if LayerStore.exists(root, name):
        run_logger().info("curvature %s is there already", name)
        return StoreRef(kind="layers", location=str(root / name), fingerprint=name)
    windows = _chosen_windows(documents, curvature)
    fisher = FisherSum(basis_store.layers)
    with progress("curvature", len(windows), "example") as bar:
        for rows, n_examples in _curvature_rows(loaded, basis_store, documents, windows, curvature, batch_tokens):
            fisher.add(rows)
            bar.advance(n_examples)
    matrices = [{"fisher": matrix} for matrix in fisher.mean()]
    return LayerStore.write(root, name, basis_store.layers, matrices, {**parts, "n_examples": len(windows)})


def _chosen_windows(corpus: CorpusStore, config: CurvatureConfig) -> np.ndarray:
    """Windows of a share of the documents, chosen by the seed and the contents, whatever the documents' order."""
    order = np.lexsort((corpus.contents, corpus.column("n_tokens").to_numpy()))
    order = order[corpus.column("n_windows").to_numpy()[order] > 0]
    generator = np.random.default_rng(config.seed)
    n_chosen = max(1, round(config.fraction * len(order)))
    chosen = order[np.sort(generator.permutation(len(order))[:n_chosen])]
    first = corpus.first_windows
    return np.concatenate([np.arange(first[document], first[document + 1]) for document in chosen])


def _curvature_rows(
    loaded: LoadedModel,
    bases: LayerStore,
    corpus: CorpusStore,
    windows: np.ndarray,
    config: CurvatureConfig,
    batch_tokens: int,
) -> Iterator[tuple[Tensor, int]]:
    """Gradients with the curvature's own labels, batch by batch, and how many examples are done with each."""
    device, dtype = loaded.device, loaded.model.dtype
    projections = [projection.to(device, dtype) for projection in stored_projections(bases)]
    generator = torch.Generator(device).manual_seed(config.seed)
    try:
        with GradientCapture([layer.module for layer in loaded.layers], projections) as capture:
            for batch in batches_by_length(corpus.windows["n_tokens"][windows], batch_tokens):
                inputs = corpus_batch(corpus, windows[batch], device)
                if config.labels == "empirical":
                    yield gradient_rows(loaded.model, capture, *inputs)[0], len(batch)
                    continue
                draws = sampled_gradient_rows(loaded.model, capture, *inputs, config.draws, generator)
                for draw, rows in enumerate(draws, 1):
                    yield rows, len(batch) if draw == config.draws else 0
    except CaptureError as error:
        raise InputError(str(error)) from error
