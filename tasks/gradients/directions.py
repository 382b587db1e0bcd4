"""The step that makes of each query what gradients of documents are multiplied with, so that none has to be kept."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.gradients import ALONG
from dataworth.storage.layer_table import Layer
from dataworth.storage.layers import LayerStore
from dataworth.storage.place import Location
from dataworth.storage.ref import StoreRef
from dataworth.storage.spelling import setting
from dataworth.tasks.capture.passes import gradient_rows
from dataworth.tasks.corpus.batches import batches_by_length, corpus_batch
from dataworth.tasks.curvature.config import DampingConfig
from dataworth.tasks.curvature.passes import told_failures
from dataworth.tasks.curvature.stored import damped_inverses
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.gradients.cutting import Cut, Frame, Grams
from dataworth.tasks.keeping import kept
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import LoadedModel, load
from dataworth.tasks.model.plain import gradient_capture
from dataworth.tasks.progress import progress, run_logger
from dataworth.tasks.projection.logra import (
    DIRECTIONS,
    LayerProjection,
    layer_table,
    projection_matrices,
    stored_projections,
)
from dataworth.tasks.visible import short

__all__ = ["make_directions", "row_attributes", "row_layers"]

ALGORITHM = 1
KIND = "directions"
# Of a pass over queries where nobody says another number.
BATCH_TOKENS = 4096
# To cut queries so far that none loses more than is allowed, before none is cut.
TRIES = 4


def make_directions(
    store: str,
    model: ModelConfig,
    queries: StoreRef,
    bases: StoreRef,
    curvature: StoreRef | None,
    damping_config: DampingConfig,
    gradients: GradientsConfig,
) -> StoreRef:
    """(H + lambda I)^-1 g of every query, layer by layer, in as few coordinates as the allowed error asks for.

    A gradient of a document, multiplied with a query's, is its score; so a pass over the corpus keeps one number a
    query and window. The store has the layers' projections, whose sides are cut, and `directions` (n_queries, k_out *
    k_in); its attribute `errors` says of each query what share of its scores the cut loses, as a root of a mean square
    under the curvature.

    Args:
        store: root of the stores.
        model: the checkpoint.
        queries: one window each.
        bases: of the projection; `identity` for whole gradients.
        curvature, damping_config: of the training loss; None for `none`.
        gradients: the allowed error; 0: nothing is cut.

    Raises:
        InputError: they do not fit in memory.
    """
    loaded, asked = load(model), CorpusStore.open(queries)
    fitted = {} if curvature is None else LayerStore.open(curvature).attributes
    parts = {
        KIND: ALGORITHM,
        "model": loaded.fingerprint,
        "queries": queries.fingerprint,
        "bases": bases.fingerprint,
        "curvature": curvature.fingerprint if curvature else None,
        "damping": damping_config.model_dump() if curvature else None,
        "error": gradients.query_error,
        # Whose curvature it is, as of a curvature: with the corpus it goes.
        "corpus": fitted.get("corpus"),
    }

    def build(root: Location, name: str) -> None:
        projections = stored_projections(LayerStore.open(bases))
        if any(each.sketch is not None for each in projections):
            raise InputError(
                f"{setting('projection.bases')}: nothing is kept of gradients whose sides are sketched together: pass "
                f"other bases, or {setting('gradients.keep')} rows"
            )
        inverses = damped_inverses(curvature, damping_config)
        frames = [Frame(each, inverses.get(each.name)) for each in projections]
        passes = _Passes(loaded, asked, frames, gradients.batch_tokens)
        if gradients.query_error:
            projections, directions, errors = _cut(passes, gradients.query_error)
        else:
            projections, directions = [frame.projection for frame in frames], _whole(passes)
            errors = np.zeros(asked.n_examples)
        attributes = {**parts, "kind": KIND, "n_queries": asked.n_examples, "errors": errors.round(6).tolist()}
        matrices = [
            projection_matrices(projection) | {DIRECTIONS: matrix}
            for projection, matrix in zip(projections, directions, strict=True)
        ]
        LayerStore.write(root, name, layer_table(projections), matrices, attributes)

    ref = kept(store, "layers", parts, "directions of the queries", build)
    _say(LayerStore.open(ref))
    return ref


def _say(made: LayerStore) -> None:
    errors = made.attributes["errors"]
    sizes = [size for layer in made.layers for size in (layer.k_out, layer.k_in)]
    run_logger().info(
        "queries are told in %s … %s coordinates a side; their scores are %.2g %% off at most (root mean square)",
        *(min(sizes), max(sizes), 100 * max(errors, default=0.0)),
    )


class _Passes:
    """The queries, to pass over as often as needed."""

    def __init__(
        self, loaded: LoadedModel, queries: CorpusStore, frames: Sequence[Frame], batch_tokens: int | None
    ) -> None:
        self._loaded, self._queries, self.frames = loaded, queries, list(frames)
        self.n_queries, self._batch_tokens = queries.n_examples, batch_tokens or BATCH_TOKENS
        rotated = [frame.rotated for frame in frames]
        self.columns = [layer.columns for layer in layer_table(rotated)]
        self._projections = [each.to(loaded.device, loaded.model.dtype) for each in rotated]
        self._held: list[tuple[np.ndarray, np.ndarray]] = []

    def solved(self, what: str) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Numbers of some queries, and their directions in each layer's frame."""
        for numbers, rows in self._rows(what):
            yield (
                numbers,
                [frame.solved(rows[:, own]) for frame, own in zip(self.frames, self.columns, strict=True)],
            )

    def _rows(self, what: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Numbers of some queries and their (n, n_columns) gradients in the frames; few queries are held."""
        if self._held:
            yield from self._held
            return
        device, reading = self._loaded.device, self._loaded.reading
        lengths = np.asarray(self._queries.windows["n_tokens"])
        with (
            gradient_capture(self._loaded, self._projections) as capture,
            progress(what, self.n_queries, "query") as bar,
        ):
            for numbers in batches_by_length(lengths, self._batch_tokens, reading.batching, capture.most_rows):
                inputs = corpus_batch(self._queries, numbers, device, reading.pad_token)
                with told_failures(int(inputs[0].numel())):
                    rows = gradient_rows(*self._loaded.halves, capture, *inputs)[0].float().cpu().numpy()
                self._refuse_infinite(numbers, rows)
                if self.n_queries <= capture.most_rows:
                    self._held.append((numbers, rows))
                yield numbers, rows
                bar.advance(len(numbers))

    def _refuse_infinite(self, numbers: np.ndarray, rows: np.ndarray) -> None:
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            name = self._queries.column("document_id")[int(numbers[bad[0]])].as_py()
            raise InputError(f"the gradient of query {short(name)} is not finite")


def _empty(n_queries: int, sizes: Sequence[int]) -> list[np.ndarray]:
    """(n_queries, size) of each layer.

    Raises:
        InputError: they do not fit.
    """
    n_bytes, room = 4 * n_queries * sum(sizes), int(psutil.virtual_memory().available)
    if n_bytes > room:
        raise InputError(
            f"the directions of {n_queries:,} queries take {n_bytes / 1e9:,.0f} GB, of which there are "
            f"{room / 1e9:,.0f}: ask fewer queries at a time, or allow a larger {setting('gradients.query_error')}"
        )
    return [np.empty((n_queries, size), np.float32) for size in sizes]


def _whole(passes: _Passes) -> list[np.ndarray]:
    directions = _empty(passes.n_queries, [columns.stop - columns.start for columns in passes.columns])
    for numbers, solved in passes.solved("queries"):
        for matrix, frame, own in zip(directions, passes.frames, solved, strict=True):
            matrix[numbers] = frame.whole(own)
    return directions


def _cut(passes: _Passes, error: float) -> tuple[list[LayerProjection], list[np.ndarray], np.ndarray]:
    """Projections, directions, and of each query what the cut loses: no more than is allowed of any."""
    frames, squares = passes.frames, np.zeros(passes.n_queries)
    for numbers, solved in passes.solved("lengths of the queries"):
        squares[numbers] = sum(frame.squares(own) for frame, own in zip(frames, solved, strict=True))
    grams = [Grams(frame) for frame in frames]
    for numbers, solved in passes.solved("sides of the queries"):
        for gram, own in zip(grams, solved, strict=True):
            gram.add(own, squares[numbers])
    allowed = error
    for _ in range(TRIES):
        cuts = [Cut.of(frame, gram.leading(allowed)) for frame, gram in zip(frames, grams, strict=True)]
        projections = [cut.projection for cut in cuts]
        directions = _empty(passes.n_queries, [each.n_columns for each in projections])
        left = np.zeros(passes.n_queries)
        for numbers, solved in passes.solved("queries"):
            for matrix, cut, own in zip(directions, cuts, solved, strict=True):
                matrix[numbers], of_left = cut.directions(own)
                left[numbers] += of_left
        lost = np.divide(squares - left, squares, out=np.zeros(len(squares)), where=squares > 0)
        errors = np.sqrt(np.maximum(lost, 0.0))
        if errors.max(initial=0.0) <= error:
            return projections, directions, errors
        allowed /= 2  # the sides are shared, and one of many queries may lie elsewhere than the others
    return [frame.projection for frame in frames], _whole(passes), np.zeros(passes.n_queries)


def row_layers(bases: LayerStore) -> list[Layer]:
    """The layer table of rows that are made with these bases; of directions one column a query, of all layers."""
    attributes = bases.attributes
    return [Layer("queries", 0, attributes["n_queries"])] if attributes.get("kind") == KIND else bases.layers


def row_attributes(bases: LayerStore) -> dict[str, Any]:
    """What else is said of such rows: `along`, of which queries they are the scores, and whose curvature is in them."""
    attributes = bases.attributes
    if attributes.get("kind") != KIND:
        return {}
    return {ALONG: attributes["queries"], "corpus": attributes["corpus"]}
