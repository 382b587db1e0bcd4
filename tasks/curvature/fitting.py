"""Passes over windows under the curvature's own labels, and what they add up to, on one process or several.

Apart from task.py the one module of the room that knows stores and models.
"""

import time
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import DataworthError, InputError, StoreError
from dataworth.storage.layers import LayerStore
from dataworth.storage.locations import StoreFolders
from dataworth.storage.partial import PartialSums
from dataworth.storage.ref import StoreRef, fingerprint
from dataworth.tasks.capture.factors import FactorCapture
from dataworth.tasks.capture.gradients import GradientCapture
from dataworth.tasks.capture.hooks import CaptureError, LayerCapture
from dataworth.tasks.capture.losses import Labeller, data_labels, drawn_labels, every_class
from dataworth.tasks.capture.memory import measured_batch_tokens
from dataworth.tasks.capture.passes import backward_passes
from dataworth.tasks.corpus.batches import batches_by_length
from dataworth.tasks.corpus.examples import CorpusExamples, Examples
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.curvature.lowrank import LowRankSum
from dataworth.tasks.curvature.matrices import Matrices, covariance_matrices, fitted_matrices
from dataworth.tasks.curvature.sums import MAX_COLUMNS, EigenvalueSum, FisherSum, GroupedFisherSum, RowSum
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import LoadedModel, load
from dataworth.tasks.model.plain import Model, gradient_capture
from dataworth.tasks.progress import progress, run_logger
from dataworth.tasks.projection.bases import projections_of
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.logra import LayerProjection, layer_table, stored_projections
from dataworth.tasks.torchrun import processes

__all__ = [
    "ACTIONS",
    "curvature_passes",
    "fit",
    "fit_covariances_in_memory",
    "label_passes",
    "label_rows",
    "ordered_sums",
    "wide",
]

SECONDS_BETWEEN_CHECKPOINTS = 30.0
# Of a pass over examples in memory.
BATCH_TOKENS = 4096


def wide(layer: dict[str, Any]) -> bool:
    """A dense Fisher of this layer would be too large."""
    return int(layer["n_columns"]) > MAX_COLUMNS


def ordered_sums(*arguments: Any) -> dict[str, Tensor]:
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
    towards_base: float = 0.0,
    groups: tuple[np.ndarray, int] | None = None,
) -> dict[str, Tensor]:
    """Sums over the windows of what a curvature is made of: this process adds its batches, and all add up theirs.

    With the group of each window, and how many groups there are, Fisher sums are kept by group. What is summed is kept
    now and then, so that a killed run goes on from there.
    """
    loaded, place = load(model, towards_base), processes()
    documents = CorpusExamples(CorpusStore.open(corpus))
    adding = _Adding.of(what, loaded, _projections(loaded, bases), curvature, eigenvectors, groups)
    if batch_tokens is None:
        batch_tokens = place.agreed(_measured(loaded, adding.capture, documents, curvature))
        adding.put({key: torch.zeros_like(tensor) for key, tensor in adding.of_capture.items()})
    steps = {"what": what, "name": name, "batch_tokens": batch_tokens, "rank": place.rank, "size": place.size}
    partial = PartialSums(StoreFolders(store).layers, fingerprint(steps))
    done, kept = partial.load()
    adding.put({key: torch.from_numpy(matrix) for key, matrix in kept.items()})
    everyone = batches_by_length(documents.lengths[windows], batch_tokens, loaded.reading.batching)
    batches = everyone[place.rank :: place.size]
    if done:
        run_logger().info("%s: going on after %s of %s batches", what, done, len(batches))
    kept_at = time.monotonic()
    with progress(f"curvature: {what}", len(batches), "batch") as bar, adding.capture:
        bar.advance(done)
        for number, batch in enumerate(batches[done:], done + 1):
            for _ in curvature_passes(loaded, adding.capture, documents, windows[batch], curvature):
                adding.add(batch)
            bar.advance()
            if time.monotonic() - kept_at > SECONDS_BETWEEN_CHECKPOINTS:
                partial.save(number, {key: tensor.cpu().numpy() for key, tensor in adding.sums.items()})
                kept_at = time.monotonic()
        if loaded.sharded and len(batches) < -(-len(everyone) // place.size):
            # Sharded weights are gathered by all processes at once: one pass without use, while others have their last.
            before = {key: tensor.clone() for key, tensor in adding.of_capture.items()}
            _pass_over(loaded, adding.capture, documents, windows[everyone[0]], curvature)
            adding.put(before)
    totals = place.total(adding.sums)
    partial.remove()
    return totals


def fit(
    model: Model,
    examples: Examples,
    projections: Sequence[LayerProjection],
    curvature: CurvatureConfig,
    whole: Matrices | None = None,
) -> Matrices:
    """The curvature of every layer, fitted on all of the examples, in memory.

    Args:
        model: the checkpoint.
        examples: those that it was trained on.
        projections: one a layer.
        curvature: kind, labels, draws, low rank and seed.
        whole: covariances of the whole layers, as `fit_covariances` makes them.
    """

    def sums(what: str, eigenvectors: list[tuple[np.ndarray, np.ndarray]] | None) -> dict[str, Tensor]:
        return _sums_in_memory(model, examples, projections, curvature, what, eigenvectors)

    names = [projection.name for projection in projections]
    by_name = None if whole is None else dict(zip(names, whole, strict=True))
    covariance = None if by_name is None else lambda layer, side: by_name[layer][side]
    return fitted_matrices(projections, curvature, examples.n_examples, sums, covariance)


def fit_covariances_in_memory(
    model: Model, examples: Examples, projections: Sequence[LayerProjection], curvature: CurvatureConfig
) -> Matrices:
    """KFAC's two covariances of every layer, from all of the examples."""
    return covariance_matrices(
        projections, _sums_in_memory(model, examples, projections, curvature, "covariances", None)
    )


def _sums_in_memory(
    model: Model,
    examples: Examples,
    projections: Sequence[LayerProjection],
    curvature: CurvatureConfig,
    what: str,
    eigenvectors: list[tuple[np.ndarray, np.ndarray]] | None,
) -> dict[str, Tensor]:
    """As `_sums`, of examples in memory; rows have the weights' precision, so that a float64 model stays one."""
    dtype = next(model.model.parameters()).dtype
    moved = [projection.to(model.device, dtype) for projection in projections]
    exact = torch.promote_types(dtype, torch.float32)
    adding = _Adding.of(what, model, moved, curvature, eigenvectors, dtype=exact)
    with adding.capture:
        for numbers in batches_by_length(examples.lengths, BATCH_TOKENS, model.reading.batching):
            for _ in curvature_passes(model, adding.capture, examples, numbers, curvature):
                adding.add(numbers)
    return adding.sums


@dataclass(frozen=True)
class _Adding:
    """What passes over windows add up: what the capture itself sums, or sums of the rows that it hands out."""

    capture: LayerCapture
    row_sums: Sequence[RowSum] = ()
    by_group: Sequence[GroupedFisherSum] = ()

    @classmethod
    def of(
        cls,
        what: str,
        loaded: Model,
        projections: Sequence[LayerProjection],
        curvature: CurvatureConfig,
        eigenvectors: list[tuple[np.ndarray, np.ndarray]] | None,
        groups: tuple[np.ndarray, int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "_Adding":
        """As `_sums` is asked for, from rows of a data type."""
        if what == "covariances":
            return cls(FactorCapture([layer.modules for layer in loaded.layers], projections))
        capture, table = gradient_capture(loaded, projections, dtype), layer_table(projections)
        if groups is None:
            return cls(capture, row_sums=_row_sums(table, curvature, eigenvectors))
        return cls(capture, by_group=[GroupedFisherSum(table, *groups)])

    @property
    def of_capture(self) -> dict[str, Tensor]:
        """Its own sums, where it keeps some."""
        return self.capture.sums if isinstance(self.capture, FactorCapture) else {}

    @property
    def sums(self) -> dict[str, Tensor]:
        """All of them."""
        return dict(ChainMap(*self._owned))

    @property
    def _owned(self) -> list[dict[str, Tensor]]:
        return [self.of_capture, *(each.sums for each in self.row_sums), *(each.sums for each in self.by_group)]

    def put(self, sums: Mapping[str, Tensor]) -> None:
        """In the place of those that are there."""
        for owned in self._owned:
            owned.update({key: sums[key] for key in owned if key in sums})

    def add(self, examples: np.ndarray) -> None:
        """What a backward pass over the examples of these numbers left."""
        if isinstance(self.capture, GradientCapture):
            rows = self.capture.rows()
            for entry in self.row_sums:
                entry.add(rows)
            for grouped in self.by_group:
                grouped.add(rows, examples)


def _projections(loaded: LoadedModel, bases: StoreRef | None) -> list[LayerProjection]:
    """Those stored, on the model's device; without bases the whole space."""
    if bases is None:
        projections = projections_of(loaded.layers, ProjectionConfig(kind="identity"))
    else:
        projections = stored_projections(LayerStore.open(bases))
    return [projection.to(loaded.device, loaded.model.dtype) for projection in projections]


def label_rows(
    loaded: LoadedModel, projections: Sequence[LayerProjection], corpus: CorpusStore, curvature: CurvatureConfig
) -> Float[np.ndarray, "n m c"]:
    """Gradients of every window under each of the curvature's labels, times the root of the label's weight, float32.

    Their outer products add up to the Gauss-Newton matrix of a window: for a few queries, whose rows all fit in memory.
    """
    alone = [np.array([window]) for window in range(corpus.n_examples)]
    rows = label_passes(loaded, projections, corpus, alone, curvature)
    return np.stack([np.concatenate(labels) for labels in rows])


def label_passes(
    loaded: LoadedModel,
    projections: Sequence[LayerProjection],
    corpus: CorpusStore,
    batches: Sequence[np.ndarray],
    curvature: CurvatureConfig,
) -> Iterator[list[Float[np.ndarray, "n c"]]]:
    """For each batch of windows, their rows under each of the curvature's labels, as in `label_rows`."""
    projections = [projection.to(loaded.device, loaded.model.dtype) for projection in projections]
    examples = CorpusExamples(corpus)
    with gradient_capture(loaded, projections) as capture:
        for batch in batches:
            passes = curvature_passes(loaded, capture, examples, batch, curvature)
            yield [capture.rows().float().cpu().numpy() for _ in passes]


def _row_sums(
    table: list[dict[str, Any]],
    curvature: CurvatureConfig,
    eigenvectors: list[tuple[np.ndarray, np.ndarray]] | None,
) -> list[RowSum]:
    """What gradient rows are added to: eigenvalues in a given basis, or dense and low-rank Fisher matrices."""
    if eigenvectors is not None:
        inputs, outputs = zip(*eigenvectors, strict=True)
        return [EigenvalueSum(table, inputs, outputs)]
    of_wide = {number: layer for number, layer in enumerate(table) if wide(layer)}
    narrow = {number: layer for number, layer in enumerate(table) if number not in of_wide}
    return [FisherSum(narrow), LowRankSum(of_wide, curvature.low_rank, curvature.seed)]


def _measured(loaded: LoadedModel, capture: LayerCapture, examples: Examples, config: CurvatureConfig) -> int:
    """Tokens of a pass that fits the device, from trial passes over its longest window."""
    longest = int(examples.lengths.argmax())

    def run(n_rows: int) -> None:
        with capture:
            _pass_over(loaded, capture, examples, np.full(n_rows, longest), config)

    return measured_batch_tokens(run, int(examples.lengths[longest]), loaded.device)


def _pass_over(
    loaded: LoadedModel, capture: LayerCapture, examples: Examples, numbers: np.ndarray, config: CurvatureConfig
) -> None:
    """One batch, whose rows nobody wants."""
    for _ in curvature_passes(loaded, capture, examples, numbers, config):
        if isinstance(capture, GradientCapture):
            capture.rows()


def curvature_passes(
    model: Model, capture: LayerCapture, examples: Examples, numbers: np.ndarray, config: CurvatureConfig
) -> Iterator[None]:
    """The backward passes of one batch under the curvature's own labels; it stops after each for the caller.

    Args:
        model: whose layers the capture is on.
        capture: active.
        examples: of the batch.
        numbers: of the examples in it.
        config: labels, draws and seed.

    Raises:
        InputError: a layer cannot be captured.
        StoreError: the device has not enough memory.
    """
    input_ids, attention_mask, labels = examples.batch(numbers, model.device, model.reading.pad_token)
    capture.expect(len(input_ids))
    if isinstance(capture, FactorCapture):
        capture.tokens = attention_mask

    def labeller(targets: Tensor) -> Labeller:
        if config.labels == "empirical":
            return data_labels(targets)
        if config.labels == "exact" and model.n_classes is not None:
            return every_class(model.n_classes)
        uniforms = examples.uniforms(numbers, labels, config.draws, config.seed)
        return drawn_labels(torch.from_numpy(uniforms).to(targets.device))

    try:
        yield from backward_passes(*model.halves, input_ids, attention_mask, labels, labeller)
    except CaptureError as error:
        raise InputError(str(error)) from error
    except torch.OutOfMemoryError:
        raise StoreError(
            f"the device has not enough memory for {input_ids.numel()} tokens: lower --gradients.batch_tokens"
        ) from None
    except DataworthError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:  # a model's code decides which texts it cannot read
        raise InputError(f"the model cannot compute some texts ({' '.join(str(error).split())[:200]})") from error


def _follow_fit(arguments: Sequence[Any]) -> None:
    _sums(*arguments)


ACTIONS = {"fit": _follow_fit}
