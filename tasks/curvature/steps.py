"""Steps that fit covariances and the curvature of the training loss in the projected space."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.layer_table import Layer
from dataworth.storage.layers import LayerStore
from dataworth.storage.locations import StoreFolders
from dataworth.storage.place import Location
from dataworth.storage.ref import StoreRef, fingerprint
from dataworth.storage.schema import SOURCE_SUMS_KIND
from dataworth.storage.spelling import setting
from dataworth.tasks.corpus.groups import SOURCE, document_groups
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.curvature.fitting import StoredPasses, covariance_sums, fitted, grouped_fisher_sums, is_wide
from dataworth.tasks.curvature.kronecker import Covariances
from dataworth.tasks.curvature.passes import label_rows
from dataworth.tasks.curvature.source_sums import (
    SourceDocuments,
    chosen_share,
    grouped_gradient_sums,
    source_documents,
    towards_base,
)
from dataworth.tasks.curvature.sums import MAX_COLUMNS
from dataworth.tasks.keeping import kept
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import LoadedModel, load
from dataworth.tasks.progress import run_logger
from dataworth.tasks.projection.bases import covariance_space
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.logra import LayerProjection, layer_table, stored_projections

__all__ = ["fit_covariances", "fit_matrices", "fit_query_factors", "fit_source_sums"]

ALGORITHM = 2
# What is never refused, whatever memory says it has.
MAX_COVARIANCE_BYTES = 2**30
# Of the sums by source and group of documents.
SOURCE_SUMS = 3


def fit_covariances(
    store: str,
    model: ModelConfig,
    corpus: StoreRef,
    curvature: CurvatureConfig,
    batch_tokens: int | None,
    projection: ProjectionConfig | None = None,
) -> StoreRef:
    """KFAC's two covariances of every tracked layer, whole: what PCA bases are made of, and EK-FAC without projection.

    Memory: (n_inputs^2 + n_outputs^2) float64 a layer, whatever the size of the corpus. Where bases are pca, outputs
    that are tokens are projected first.

    Args:
        store: root of the stores.
        model: the checkpoint.
        corpus: documents.
        curvature: labels, draws, fraction and seed.
        batch_tokens: most tokens of one pass; None: what fits.
        projection: that they are fitted for; None: none.

    Raises:
        InputError: they do not fit in memory.
    """
    loaded, documents = load(model), CorpusStore.open(corpus)
    projection = projection or ProjectionConfig(kind="identity")
    projections = covariance_space(loaded.layers, projection)
    _refuse_large(projections)
    parts = _parts(loaded, documents, curvature) | {"covariances": ALGORITHM}
    parts["layers"] = [[layer.name, layer.n_inputs, layer.n_outputs, layer.has_bias] for layer in loaded.layers]
    if projection.kind == "pca" and any(layer.is_vocabulary for layer in loaded.layers):
        parts["vocabulary"] = projection.model_dump(include={"rank", "ranks", "seed"})

    def made(windows: np.ndarray) -> list[dict[str, np.ndarray]]:
        passes = StoredPasses(store, model, corpus, None, curvature, batch_tokens, windows, fingerprint(parts))
        passes = replace(passes, projection=projection)
        return [covariances.arrays for covariances in passes.result(covariance_sums)]

    return _stored(store, parts, layer_table(projections), documents, curvature, made)


def _refuse_large(projections: Sequence[LayerProjection]) -> None:
    sides = [(size, entry.name) for entry in projections for size in (entry.k_in, entry.k_out)]
    n_bytes, (largest, name) = sum(8 * size**2 for size, _ in sides), max(sides)
    room = int(psutil.virtual_memory().available)
    if n_bytes > max(room, MAX_COVARIANCE_BYTES):
        raise InputError(
            f"the covariances of all layers take {n_bytes / 1e9:,.0f} GB, of which there are {room / 1e9:,.0f}; the "
            f"widest side has {largest:,} dimensions, of layer {name}: pass another {setting('projection.kind')}, or "
            f"exclude layers with {setting('model.exclude')}"
        )


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
    if curvature.kind == "fisher" and any(is_wide(layer.n_columns) for layer in basis_store.layers):
        parts["low_rank"] = curvature.low_rank

    def made(windows: np.ndarray) -> list[dict[str, np.ndarray]]:
        passes = StoredPasses(store, model, corpus, bases, curvature, batch_tokens, windows, fingerprint(parts))
        whole = None if covariances is None else partial(_covariances, LayerStore.open(covariances))
        return [entry.arrays for entry in fitted(passes, stored_projections(basis_store), curvature, whole)]

    return _stored(store, parts, basis_store.layers, documents, curvature, made)


def _covariances(store: LayerStore, layer: str) -> Covariances:
    return Covariances.of({name: store.matrix(layer, name) for name in store.names(layer)})


def fit_source_sums(
    store: str,
    model: ModelConfig,
    corpus: StoreRef,
    bases: StoreRef,
    gradients: StoreRef,
    curvature: CurvatureConfig,
    batch_tokens: int | None,
    grouping: str = SOURCE,
    n_groups: int = 5,
) -> dict[str, StoreRef]:
    """Per source, in the projected space, the sums over its examples of gradient and curvature; one store a source.

    They are kept by group of documents, for the errors of the documents a source happened to contribute: storage, and
    memory while a source is summed, grow with the number of groups. The curvature is that of `towards_base`.

    Args:
        store: root of the stores.
        model: the checkpoint, and its base.
        corpus: documents.
        bases: of the projection.
        gradients: of the corpus.
        curvature: labels, draws, fraction and seed; its kind does not count.
        batch_tokens: most tokens of one pass; None: what fits.
        grouping: who a source is.
        n_groups: of the documents of each source.

    Returns:
        A store for each source that has windows, by its name; only those not there yet are computed.

    Raises:
        InputError: a layer keeps too many columns for a dense curvature of each source.
    """
    documents, basis_store = CorpusStore.open(corpus), LayerStore.open(bases)
    _refuse_wide(basis_store)
    halfway = towards_base(model)
    loaded = load(model, halfway)
    shared = _parts(loaded, documents, curvature) | {SOURCE_SUMS_KIND: SOURCE_SUMS, "bases": bases.fingerprint}
    shared |= {"gradients": gradients.fingerprint, "halfway": halfway, "document_groups": n_groups}
    sources = source_documents(documents, document_groups(documents, grouping))
    sources = [source for source in sources if len(source.documents)]
    parts = [shared | {"corpus": source.fingerprint} for source in sources]
    root, names = StoreFolders(store).layers, [fingerprint(each) for each in parts]
    missing = [number for number, name in enumerate(names) if not LayerStore.exists(root, name)]
    run_logger().info("sums of %s of %s sources to compute", len(missing), len(sources))
    totals: dict[int, np.ndarray] = {}
    if missing:
        by_group = grouped_gradient_sums(GradientStore.open(gradients), [sources[n] for n in missing], n_groups)
        totals = dict(zip(missing, by_group, strict=True))
    passes = StoredPasses(store, model, corpus, bases, curvature, batch_tokens, np.empty(0, np.int64), "", halfway)

    def build(number: int, root: Location, name: str) -> None:
        source, layers = sources[number], basis_store.layers
        matrices = _source_matrices(totals[number], source, replace(passes, name=name), documents, layers)
        n_windows = documents.column("n_windows").to_numpy()[source.documents]
        attributes = {**parts[number], "kind": SOURCE_SUMS_KIND}
        attributes |= {"n_examples": int(n_windows.sum()), "n_documents": len(n_windows)}
        LayerStore.write(root, name, layers, matrices, attributes)

    return {
        source.name: kept(store, "layers", parts[number], None, partial(build, number))
        for number, source in enumerate(sources)
    }


def _refuse_wide(bases: LayerStore) -> None:
    if any(is_wide(layer.n_columns) for layer in bases.layers):
        raise InputError(
            f"a layer keeps more than {MAX_COLUMNS} columns, too many for a curvature of every source: lower "
            f"{setting('projection.rank')}, or pass {setting('sources.game')} additive"
        )


def _source_matrices(
    gradients: np.ndarray,
    source: SourceDocuments,
    passes: StoredPasses,
    documents: CorpusStore,
    layers: Sequence[Layer],
) -> list[dict[str, np.ndarray]]:
    """The matrices `gradient` (G, k) and `curvature` (G, k, k) of each layer, and what they were made of.

    A curvature fitted on a share of the documents is scaled up to all of the source's windows; groups keep what falls
    to them, which may be nothing.

    Args:
        gradients: (G, n_columns) sums of the source.
        source: its documents.
        passes: over no windows yet.
        documents: of the corpus.
        layers: the layer table.
    """
    n_groups, curvature = len(gradients), passes.curvature
    first, groups = documents.first_windows, source.groups(n_groups)
    n_windows = np.diff(first)
    chosen = chosen_share(source, curvature.fraction, curvature.seed)
    windows = np.concatenate([np.arange(first[document], first[document + 1]) for document in chosen])
    of_window = np.repeat(groups[np.searchsorted(source.documents, chosen)], n_windows[chosen])
    counts = np.bincount(np.repeat(groups, n_windows[source.documents]), minlength=n_groups)
    means = replace(passes, windows=windows).result(partial(grouped_fisher_sums, groups=of_window, n_groups=n_groups))
    matrices = [
        {"gradient": gradients[:, layer.columns], "curvature": mean * counts.sum()}
        for layer, mean in zip(layers, means, strict=True)
    ]
    matrices[0]["contents"] = np.frombuffer(source.contents.tobytes(), np.uint8).reshape(-1, 32)
    matrices[0]["counts"] = counts
    matrices[0]["curvature_counts"] = np.bincount(of_window, minlength=n_groups)
    return matrices


def fit_query_factors(
    store: str, model: ModelConfig, queries: StoreRef, bases: StoreRef, curvature: CurvatureConfig
) -> StoreRef:
    """Rows whose outer products are each query's Gauss-Newton matrix: its gradients under the curvature's labels."""
    loaded, documents, basis_store = load(model), CorpusStore.open(queries), LayerStore.open(bases)
    parts = _parts(loaded, documents, curvature) | {"factors": ALGORITHM, "bases": bases.fingerprint}
    # Rows are in the order of the queries, which the fingerprint of their contents does not tell.
    parts |= {"corpus": queries.fingerprint, "fraction": 1.0}

    def build(root: Location, name: str) -> None:
        rows = label_rows(loaded, stored_projections(basis_store), documents, curvature)
        matrices = [{"factors": rows[..., layer.columns]} for layer in basis_store.layers]
        LayerStore.write(root, name, basis_store.layers, matrices, {"kind": "query factors", **parts})

    return kept(store, "layers", parts, "curvature of the queries", build)


def _parts(loaded: LoadedModel, corpus: CorpusStore, curvature: CurvatureConfig) -> dict[str, Any]:
    """What decides the sums, apart from bases and kind."""
    unused = {"kind", "damping", "low_rank"} | (set() if curvature.labels == "sampled" else {"draws"})
    if curvature.labels == "exact" and loaded.n_classes is None:
        raise InputError(
            f"{setting('curvature.labels')} exact: sums over every class, which a classifier has and a "
            "language model does not; "
            f"pass {setting('curvature.labels')} sampled"
        )
    return {
        "model": loaded.fingerprint,
        "corpus": corpus.contents_fingerprint,
        **corpus.attributes,
        **curvature.model_dump(exclude=unused),
    }


def _check_layers(bases: LayerStore, curvature: CurvatureConfig) -> None:
    if curvature.kind in ("kfac", "ekfac") and not all(layer.is_product for layer in bases.layers):
        raise InputError(
            f"{setting('curvature.kind')} {curvature.kind}: needs the two sides of a layer apart, which "
            "factgrass sketches together; "
            f"pass {setting('curvature.kind')} fisher or another {setting('projection.kind')}"
        )


def _stored(
    store: str,
    parts: dict[str, Any],
    layers: Sequence[Layer],
    corpus: CorpusStore,
    curvature: CurvatureConfig,
    made: Callable[[np.ndarray], Sequence[Mapping[str, np.ndarray]]],
) -> StoreRef:
    """What is fitted on a share of the documents."""

    def build(root: Location, name: str) -> None:
        windows = _chosen_windows(corpus, curvature)
        LayerStore.write(root, name, layers, made(windows), {**parts, "n_examples": len(windows)})

    return kept(store, "layers", parts, "curvature" if "kind" in parts else "covariances", build)


def _chosen_windows(corpus: CorpusStore, config: CurvatureConfig) -> np.ndarray:
    """Windows of a share of the documents, chosen by the seed and the contents, whatever the documents' order."""
    order = np.lexsort((corpus.contents, corpus.column("n_tokens").to_numpy()))
    order = order[corpus.column("n_windows").to_numpy()[order] > 0]
    generator = np.random.default_rng(config.seed)
    n_chosen = max(1, round(config.fraction * len(order)))
    chosen = order[np.sort(generator.permutation(len(order))[:n_chosen])]
    first = corpus.first_windows
    return np.concatenate([np.arange(first[document], first[document + 1]) for document in chosen])
