"""Prefect tasks that fit covariances and the curvature of the training loss in the projected space."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from prefect import task
from torch import Tensor

from storage.corpus import CorpusStore
from storage.errors import InputError, StoreError
from storage.layers import LayerStore
from storage.locations import StoreFolders
from storage.manifest import writer_lock
from storage.partial import PartialSums
from storage.ref import StoreRef, fingerprint
from tasks.capture.factors import FactorCapture
from tasks.capture.gradients import GradientCapture
from tasks.capture.hooks import CaptureError, LayerCapture
from tasks.capture.losses import Labeller, data_labels, drawn_labels, every_class
from tasks.capture.memory import measured_batch_tokens
from tasks.capture.passes import backward_passes
from tasks.corpus.batches import batches_by_length, corpus_batch, n_targets
from tasks.curvature.config import CurvatureConfig
from tasks.curvature.draws import label_uniforms
from tasks.curvature.lowrank import LowRankSum, gaussian_matrix, low_rank_plus_diagonal
from tasks.curvature.precondition import eigendecomposition
from tasks.curvature.sums import MOST_COLUMNS, EigenvalueSum, FisherSum, RowSum
from tasks.model.config import ModelConfig
from tasks.model.loading import LoadedModel, load
from tasks.processes import processes
from tasks.progress import progress, run_logger
from tasks.projection.bases import projections_of
from tasks.projection.config import ProjectionConfig
from tasks.projection.logra import LayerProjection, layer_table, stored_projections

__all__ = ["ACTIONS", "fit_covariances", "fit_matrices"]

ALGORITHM = 2
SECONDS_BETWEEN_CHECKPOINTS = 30.0

Matrices = list[dict[str, np.ndarray]]


@task(name="fit-covariances", task_run_name="fit the covariances of inputs and output gradients")
def fit_covariances(
    store: str, model: ModelConfig, corpus: StoreRef, curvature: CurvatureConfig, batch_tokens: int | None
) -> StoreRef:
    """KFAC's two covariances of every tracked layer, whole: what PCA bases are made of, and EK-FAC without projection.

    Memory: (n_inputs^2 + n_outputs^2) float64 a layer, whatever the size of the corpus.
    """
    loaded, documents = load(model), CorpusStore.open(corpus)
    parts = _parts(loaded, documents, curvature) | {"covariances": ALGORITHM}
    projections = projections_of(loaded.layers, ProjectionConfig(kind="identity"))

    def fitted(windows: np.ndarray) -> Matrices:
        factors = _ordered_sums(
            store, model, corpus, None, curvature, batch_tokens, windows, "covariances", fingerprint(parts), None
        )
        return _covariances(projections, factors)

    return _stored(store, parts, layer_table(projections), documents, curvature, fitted)


@task(name="fit-curvature", task_run_name="fit the {curvature.labels} {curvature.kind}")
def fit_matrices(
    store: str,
    model: ModelConfig,
    corpus: StoreRef,
    bases: StoreRef,
    covariances: StoreRef | None,
    curvature: CurvatureConfig,
    batch_tokens: int | None,
) -> StoreRef:
    """The curvature of every tracked layer in the projected space, on a share of the corpus.

    Damping is no part of it: it is applied when queries are preconditioned.

    Args:
        store: root of the stores.
        model: the checkpoint.
        corpus: documents.
        bases: of the projection.
        covariances: those `fit_covariances` made for the same run, if it did: KFAC and EK-FAC then need no pass of
            their own for them.
        curvature: kind, labels, draws, fraction and seed.
        batch_tokens: most tokens of one pass; None: what fits.

    Raises:
        InputError: the curvature does not fit the projection or the model.
    """
    loaded, documents, basis_store = load(model), CorpusStore.open(corpus), LayerStore.open(bases)
    _check_layers(basis_store, curvature)
    parts = _parts(loaded, documents, curvature) | {
        "curvature": ALGORITHM,
        "kind": curvature.kind,
        "bases": bases.fingerprint,
        "factors": covariances.fingerprint if covariances and curvature.kind != "fisher" else None,
    }
    if curvature.kind == "fisher" and any(_wide(layer) for layer in basis_store.layers):
        parts["low_rank"] = curvature.low_rank

    def sums(what: str, windows: np.ndarray, eigenvectors: Any = None) -> dict[str, Tensor]:
        return _ordered_sums(
            store, model, corpus, bases, curvature, batch_tokens, windows, what, fingerprint(parts), eigenvectors
        )

    def fitted(windows: np.ndarray) -> Matrices:
        n_examples = len(windows)
        if curvature.kind == "fisher":
            means = {name: total.numpy() / n_examples for name, total in sums("fisher", windows).items()}
            return [_fisher(number, layer, means, curvature) for number, layer in enumerate(basis_store.layers)]
        projections = stored_projections(basis_store)
        if covariances is None:
            factors = _covariances(projections, sums("covariances", windows))
        else:
            factors = _projected_covariances(projections, LayerStore.open(covariances))
        matrices = [_eigenvectors(entry) for entry in factors]
        if curvature.kind == "ekfac":
            totals = sums("eigenvalues", windows, [_vectors(entry) for entry in matrices])
            for number, entry in enumerate(matrices):
                entry["eigenvalues"] = totals[str(number)].numpy() / n_examples
        return matrices

    return _stored(store, parts, basis_store.layers, documents, curvature, fitted)


def _fisher(
    number: int, layer: dict[str, Any], means: dict[str, np.ndarray], curvature: CurvatureConfig
) -> dict[str, np.ndarray]:
    if not _wide(layer):
        return {"fisher": means[str(number)]}
    matrix = gaussian_matrix(int(layer["n_columns"]), curvature.low_rank, curvature.seed, number)
    low_rank, residual = low_rank_plus_diagonal(means[f"sketch {number}"], matrix, means[f"diagonal {number}"])
    return {"low_rank": low_rank, "residual": residual}


def _parts(loaded: LoadedModel, corpus: CorpusStore, curvature: CurvatureConfig) -> dict[str, Any]:
    """What decides the sums, apart from bases and kind."""
    unused = {"kind", "damping", "low_rank"} | (set() if curvature.labels == "sampled" else {"draws"})
    if curvature.labels == "exact" and loaded.n_classes is None:
        raise InputError(
            "--curvature.labels exact: sums over every class, which a classifier has and a language model does not; "
            "pass --curvature.labels sampled"
        )
    return {
        "model": loaded.fingerprint,
        "corpus": corpus.contents_fingerprint,
        **corpus.manifest["attributes"],
        **curvature.model_dump(exclude=unused),
    }


def _check_layers(bases: LayerStore, curvature: CurvatureConfig) -> None:
    sketched = any(layer["n_columns"] != layer["k_out"] * layer["k_in"] for layer in bases.layers)
    if curvature.kind in ("kfac", "ekfac") and sketched:
        raise InputError(
            f"--curvature {curvature.kind}: needs the two sides of a layer apart, which factgrass sketches together; "
            "pass --curvature fisher or another --projection"
        )


def _wide(layer: dict[str, Any]) -> bool:
    """A dense Fisher of this layer would be too large."""
    return int(layer["n_columns"]) > MOST_COLUMNS


def _stored(
    store: str,
    parts: dict[str, Any],
    layers: Sequence[dict[str, Any]],
    corpus: CorpusStore,
    curvature: CurvatureConfig,
    fitted: Callable[[np.ndarray], Matrices],
) -> StoreRef:
    """Fit and write, or say that it is there already."""
    root, name = StoreFolders(store).layers, fingerprint(parts)
    if LayerStore.exists(root, name):
        run_logger().info("%s %s is there already", "curvature" if "kind" in parts else "covariances", name)
        return StoreRef(kind="layers", location=str(root / name), fingerprint=name)
    windows = _chosen_windows(corpus, curvature)
    with writer_lock(root / f"{name}-fit"):
        return LayerStore.write(root, name, layers, fitted(windows), {**parts, "n_examples": len(windows)})


def _chosen_windows(corpus: CorpusStore, config: CurvatureConfig) -> np.ndarray:
    """Windows of a share of the documents, chosen by the seed and the contents, whatever the documents' order."""
    order = np.lexsort((corpus.contents, corpus.column("n_tokens").to_numpy()))
    order = order[corpus.column("n_windows").to_numpy()[order] > 0]
    generator = np.random.default_rng(config.seed)
    n_chosen = max(1, round(config.fraction * len(order)))
    chosen = order[np.sort(generator.permutation(len(order))[:n_chosen])]
    first = corpus.first_windows
    return np.concatenate([np.arange(first[document], first[document + 1]) for document in chosen])


def _ordered_sums(*arguments: Any) -> dict[str, Tensor]:
    """`_sums` on every process; the totals, on the CPU."""
    processes().order("fit", {"arguments": arguments})
    return _sums(*arguments)


def _sums(
    store: str,
    model: ModelConfig,
    corpus: StoreRef,
    bases: StoreRef | None,
    curvature: CurvatureConfig,
    batch_tokens: int | None,
    windows: np.ndarray,
    what: str,
    name: str,
    eigenvectors: list[tuple[np.ndarray, np.ndarray]] | None,
) -> dict[str, Tensor]:
    """Sums over the windows of what a curvature is made of: this process adds its batches, and all add up theirs.

    What is summed is kept now and then, so that a killed run goes on from there.
    """
    loaded, documents, place = load(model), CorpusStore.open(corpus), processes()
    if bases is None:
        projections = projections_of(loaded.layers, ProjectionConfig(kind="identity"))
    else:
        projections = stored_projections(LayerStore.open(bases))
    projections = [projection.to(loaded.device, loaded.model.dtype) for projection in projections]
    modules = [layer.modules for layer in loaded.layers]
    capture: LayerCapture
    row_sums: list[RowSum] = []
    if what == "covariances":
        capture = FactorCapture(modules, projections)
        sums = capture.sums
    else:
        capture = GradientCapture(modules, projections)
        row_sums = _row_sums(layer_table(projections), curvature, eigenvectors)
        sums = {}
    if batch_tokens is None:
        batch_tokens = place.agreed(_measured(loaded, capture, documents, curvature))
        sums.update({key: torch.zeros_like(tensor) for key, tensor in sums.items()})
    steps = {"what": what, "name": name, "batch_tokens": batch_tokens, "rank": place.rank, "size": place.size}
    partial = PartialSums(StoreFolders(store).layers, fingerprint(steps))
    done, kept = partial.load()
    for owned in [sums, *(entry.sums for entry in row_sums)]:
        owned.update({key: torch.from_numpy(kept[key]) for key in owned if key in kept})
    everyone = batches_by_length(documents.windows["n_tokens"][windows], batch_tokens)
    batches = everyone[place.rank :: place.size]
    if done:
        run_logger().info("%s: going on after %s of %s batches", what, done, len(batches))
    kept_at = time.monotonic()
    with progress(f"curvature: {what}", len(batches), "batch") as bar, capture:
        bar.advance(done)
        for number, batch in enumerate(batches[done:], done + 1):
            for _ in _passes(loaded, capture, documents, windows[batch], curvature):
                if isinstance(capture, GradientCapture):
                    rows = capture.rows()
                    for entry in row_sums:
                        entry.add(rows)
            bar.advance()
            if time.monotonic() - kept_at > SECONDS_BETWEEN_CHECKPOINTS:
                partial.save(number, {key: tensor.cpu().numpy() for key, tensor in _all(sums, row_sums).items()})
                kept_at = time.monotonic()
        if loaded.sharded and len(batches) < -(-len(everyone) // place.size):
            # Sharded weights are gathered by all processes at once: one pass without use, while others have their last.
            before = {key: tensor.clone() for key, tensor in sums.items()}
            for _ in _passes(loaded, capture, documents, windows[everyone[0]], curvature):
                if isinstance(capture, GradientCapture):
                    capture.rows()
            sums.update(before)
    totals = place.total(_all(sums, row_sums))
    partial.remove()
    return totals


def _row_sums(
    table: list[dict[str, Any]],
    curvature: CurvatureConfig,
    eigenvectors: list[tuple[np.ndarray, np.ndarray]] | None,
) -> list[RowSum]:
    """What gradient rows are added to: eigenvalues in a given basis, or dense and low-rank Fisher matrices."""
    if eigenvectors is not None:
        inputs, outputs = zip(*eigenvectors, strict=True)
        return [EigenvalueSum(table, inputs, outputs)]
    wide = {number: layer for number, layer in enumerate(table) if _wide(layer)}
    narrow = {number: layer for number, layer in enumerate(table) if number not in wide}
    return [FisherSum(narrow), LowRankSum(wide, curvature.low_rank, curvature.seed)]


def _all(sums: dict[str, Tensor], row_sums: Sequence[RowSum]) -> dict[str, Tensor]:
    found = dict(sums)
    for entry in row_sums:
        found.update(entry.sums)
    return found


def _measured(loaded: LoadedModel, capture: LayerCapture, corpus: CorpusStore, config: CurvatureConfig) -> int:
    """Tokens of a pass that fits the device, from trial passes over its longest window."""
    longest = int(corpus.windows["n_tokens"].argmax())

    def run(n_rows: int) -> None:
        with capture:
            for _ in _passes(loaded, capture, corpus, np.full(n_rows, longest), config):
                if isinstance(capture, GradientCapture):
                    capture.rows()

    return measured_batch_tokens(run, int(corpus.windows["n_tokens"][longest]), loaded.device)


def _passes(
    loaded: LoadedModel, capture: LayerCapture, corpus: CorpusStore, windows: np.ndarray, config: CurvatureConfig
) -> Iterator[None]:
    """The backward passes of one batch under the curvature's own labels."""
    input_ids, attention_mask, labels = corpus_batch(corpus, windows, loaded.device)
    if isinstance(capture, FactorCapture):
        capture.tokens = attention_mask

    def labeller(targets: Tensor) -> Labeller:
        if config.labels == "empirical":
            return data_labels(targets)
        if config.labels == "exact" and loaded.n_classes is not None:
            return every_class(loaded.n_classes)
        documents = corpus.windows["document"][windows]
        uniforms = label_uniforms(
            corpus.contents[documents].tolist(),
            (windows - corpus.first_windows[documents]).tolist(),
            n_targets(labels).tolist(),
            config.draws,
            config.seed,
        )
        return drawn_labels(torch.from_numpy(uniforms).to(targets.device))

    try:
        yield from backward_passes(*loaded.halves, input_ids, attention_mask, labels, labeller)
    except CaptureError as error:
        raise InputError(str(error)) from error
    except torch.OutOfMemoryError:
        raise StoreError(
            f"the device has not enough memory for {input_ids.numel()} tokens: lower --gradients.batch_tokens"
        ) from None


def _covariances(projections: Sequence[LayerProjection], sums: dict[str, Tensor]) -> Matrices:
    return [
        {"input_covariance": inputs.numpy(), "output_covariance": outputs.numpy()}
        for inputs, outputs in FactorCapture([()] * len(projections), projections).covariances(sums)
    ]


def _projected_covariances(projections: Sequence[LayerProjection], whole: LayerStore) -> Matrices:
    """A C A^T of the whole covariances C of each side with basis A."""
    matrices = []
    for projection in projections:
        exact = projection.to(torch.device("cpu"), torch.float64)
        found = {}
        for name, side in (("input_covariance", exact.input_side), ("output_covariance", exact.output_side)):
            covariance = torch.from_numpy(whole.matrix(projection.name, name))
            half = side.projected(covariance, trailing_one=False)
            found[name] = side.projected(half.T.contiguous(), trailing_one=False).numpy()
        matrices.append(found)
    return matrices


def _eigenvectors(covariances: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Eigenvectors of both factors, and KFAC's eigenvalues: the products of theirs."""
    inputs, input_eigenvectors = eigendecomposition(covariances["input_covariance"])
    outputs, output_eigenvectors = eigendecomposition(covariances["output_covariance"])
    return {
        "input_eigenvectors": input_eigenvectors,
        "output_eigenvectors": output_eigenvectors,
        "eigenvalues": np.outer(outputs, inputs),
    }


def _vectors(matrices: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return matrices["input_eigenvectors"], matrices["output_eigenvectors"]


def _follow_fit(arguments: Sequence[Any]) -> None:
    _sums(*arguments)


ACTIONS = {"fit": _follow_fit}
