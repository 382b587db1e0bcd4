"""Curvatures from passes over examples: those in memory, or a corpus in a store, on one process or several."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.layers import LayerStore
from dataworth.storage.locations import StoreFolders
from dataworth.storage.partial import PartialSums
from dataworth.storage.ref import StoreRef, fingerprint
from dataworth.tasks.capture.factors import FactorCapture
from dataworth.tasks.capture.gradients import GradientCapture
from dataworth.tasks.capture.hooks import LayerCapture
from dataworth.tasks.capture.memory import measured_batch_tokens
from dataworth.tasks.corpus.batches import batches_by_length
from dataworth.tasks.corpus.examples import CorpusExamples, Examples
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.curvature.kronecker import Covariances, Kronecker
from dataworth.tasks.curvature.passes import curvature_passes
from dataworth.tasks.curvature.precondition import Curvature
from dataworth.tasks.curvature.sums import (
    MAX_COLUMNS,
    Accumulator,
    CovarianceSums,
    EigenvalueSums,
    FisherSums,
    GroupedFisherSums,
)
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import LoadedModel, load
from dataworth.tasks.model.plain import Model, gradient_capture
from dataworth.tasks.progress import progress, run_logger
from dataworth.tasks.projection.bases import covariance_space
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.logra import LayerProjection, layer_table, stored_projections
from dataworth.tasks.torchrun import processes

__all__ = [
    "ACTIONS",
    "Passes",
    "StoredPasses",
    "covariance_sums",
    "fit",
    "fit_covariances_in_memory",
    "fitted",
    "grouped_fisher_sums",
    "is_wide",
]

SECONDS_BETWEEN_CHECKPOINTS = 30.0
# Times what writing one took: of whole gradients of a large model that is long.
PAUSE_OF_SAVING = 20
IDENTITY = ProjectionConfig(kind="identity")
# Of a pass over examples in memory.
BATCH_TOKENS = 4096
Result = TypeVar("Result")
# From a model, projections of its layers on its device, a configuration and the data type of rows to what is captured,
# and what adds that up. It goes to other processes by pickle.
Build = Callable[
    [Model, Sequence[LayerProjection], CurvatureConfig, torch.dtype], tuple[LayerCapture, Accumulator[Result]]
]


def is_wide(n_columns: int) -> bool:
    """A dense Fisher of so many columns would be too large."""
    return n_columns > MAX_COLUMNS


def covariance_sums(
    model: Model, projections: Sequence[LayerProjection], curvature: CurvatureConfig, dtype: torch.dtype
) -> tuple[LayerCapture, Accumulator[Sequence[Covariances]]]:
    """KFAC's two covariances of each layer."""
    capture = FactorCapture([layer.uses for layer in model.layers], projections)
    return capture, CovarianceSums(capture)


def fisher_sums(
    model: Model, projections: Sequence[LayerProjection], curvature: CurvatureConfig, dtype: torch.dtype
) -> tuple[LayerCapture, Accumulator[Sequence[Curvature]]]:
    """The Fisher of each layer, low-rank plus diagonal where it is wide."""
    capture = gradient_capture(model, projections, dtype)
    return capture, FisherSums(capture, layer_table(projections), curvature.low_rank, curvature.seed, MAX_COLUMNS)


def eigenvalue_sums(
    model: Model,
    projections: Sequence[LayerProjection],
    curvature: CurvatureConfig,
    dtype: torch.dtype,
    factors: Sequence[Kronecker],
) -> tuple[LayerCapture, Accumulator[Sequence[Curvature]]]:
    """EK-FAC in the eigenvectors of KFAC, in which the gradients are taken."""
    rotated = [
        projection.rotated(factor.output_eigenvectors.T, factor.input_eigenvectors.T).to(
            model.device, next(model.model.parameters()).dtype
        )
        for projection, factor in zip(projections, factors, strict=True)
    ]
    capture = gradient_capture(model, rotated, dtype)
    return capture, EigenvalueSums(capture, layer_table(rotated), factors)


def grouped_fisher_sums(
    model: Model,
    projections: Sequence[LayerProjection],
    curvature: CurvatureConfig,
    dtype: torch.dtype,
    groups: np.ndarray,
    n_groups: int,
) -> tuple[LayerCapture, Accumulator[Sequence[np.ndarray]]]:
    """The Fisher of each layer by group of examples."""
    capture = gradient_capture(model, projections, dtype)
    return capture, GroupedFisherSums(capture, layer_table(projections), groups, n_groups)


class Passes(Protocol):
    """Examples to pass over as often as a curvature needs it."""

    def result(self, build: Build[Result]) -> Result:
        """What one pass over all of them adds up to."""


def fitted(
    passes: Passes,
    projections: Sequence[LayerProjection],
    curvature: CurvatureConfig,
    whole: Callable[[str], Covariances] | None = None,
) -> Sequence[Curvature]:
    """The curvature of every layer in its projected space, wherever its examples are.

    Args:
        passes: over the examples.
        projections: one a layer.
        curvature: its kind.
        whole: covariances of a whole layer by its name, where they are there: KFAC and EK-FAC then need no pass for
            theirs.
    """
    if curvature.kind == "fisher":
        return passes.result(fisher_sums)
    if whole is None:
        covariances = passes.result(covariance_sums)
    else:
        covariances = [_projected(whole(projection.name), projection) for projection in projections]
    factors = [each.kronecker() for each in covariances]
    if curvature.kind == "ekfac":
        return passes.result(partial(eigenvalue_sums, factors=factors))
    return factors


def _projected(whole: Covariances, projection: LayerProjection) -> Covariances:
    """A C A^T of the covariance C of each side with its basis A."""
    exact = projection.to(torch.device("cpu"), torch.float64)
    sides = []
    pairs = ((whole.inputs, exact.input_side, exact.n_inputs), (whole.outputs, exact.output_side, exact.n_outputs))
    for covariance, side, size in pairs:
        if len(covariance) != size:  # fitted in the projected space: see covariance_space
            sides.append(covariance)
            continue
        half = side.projected(torch.from_numpy(covariance), trailing_one=False)
        sides.append(side.projected(half.T.contiguous(), trailing_one=False).numpy())
    return Covariances(*sides)


@dataclass(frozen=True)
class MemoryPasses:
    """Passes over examples in memory; rows have the weights' precision, so that a float64 model stays one."""

    model: Model
    examples: Examples
    projections: Sequence[LayerProjection]
    curvature: CurvatureConfig

    def result(self, build: Build[Result]) -> Result:
        """What one pass over all examples adds up to."""
        model, examples = self.model, self.examples
        dtype = next(model.model.parameters()).dtype
        moved = [projection.to(model.device, dtype) for projection in self.projections]
        capture, sums = build(model, moved, self.curvature, torch.promote_types(dtype, torch.float32))
        with capture:
            most = _most_rows(capture)
            for numbers in batches_by_length(examples.lengths, BATCH_TOKENS, model.reading.batching, most):
                for _ in curvature_passes(model, capture, examples, numbers, self.curvature):
                    sums.add(numbers)
        return sums.result(examples.n_examples)


def fit(
    model: Model,
    examples: Examples,
    projections: Sequence[LayerProjection],
    curvature: CurvatureConfig,
    whole: Sequence[Covariances] | None = None,
) -> Sequence[Curvature]:
    """The curvature of every layer, fitted on all of the examples, in memory.

    Args:
        model: the checkpoint.
        examples: those that it was trained on.
        projections: one a layer.
        curvature: kind, labels, draws, low rank and seed.
        whole: covariances of the whole layers, as `fit_covariances_in_memory` makes them.
    """
    by_name = {} if whole is None else {p.name: entry for p, entry in zip(projections, whole, strict=True)}
    passes = MemoryPasses(model, examples, projections, curvature)
    return fitted(passes, projections, curvature, by_name.__getitem__ if by_name else None)


def fit_covariances_in_memory(
    model: Model, examples: Examples, projections: Sequence[LayerProjection], curvature: CurvatureConfig
) -> Sequence[Covariances]:
    """KFAC's two covariances of every layer, from all of the examples."""
    return MemoryPasses(model, examples, projections, curvature).result(covariance_sums)


@dataclass(frozen=True)
class StoredPasses:
    """Passes over windows of a corpus, by every process its batches; what they add up to is kept now and then.

    Args:
        store: root of the stores.
        model: the checkpoint.
        corpus: documents.
        bases: of the projection; None: the space of covariances.
        projection: that they are fitted for.
        curvature: labels, draws and seed.
        batch_tokens: most tokens of one pass; None: what fits.
        windows: numbers of those that count.
        name: hash of all that decides the sums.
        towards_base: at which weights (see dataworth.tasks.model.loading.load).
    """

    store: str
    model: ModelConfig
    corpus: StoreRef
    bases: StoreRef | None
    curvature: CurvatureConfig
    batch_tokens: int | None
    windows: np.ndarray
    name: str
    towards_base: float = 0.0
    projection: ProjectionConfig = IDENTITY

    def result(self, build: Build[Result]) -> Result:
        """What one pass over all windows adds up to, by all processes together; on the leading one."""
        processes().order("fit", {"passes": self, "build": build})
        return self.summed(build).result(len(self.windows))

    def _projections(self, loaded: LoadedModel) -> list[LayerProjection]:
        """On the model's device."""
        if self.bases is None:
            projections = covariance_space(loaded.layers, self.projection)
        else:
            projections = stored_projections(LayerStore.open(self.bases))
        return [projection.to(loaded.device, loaded.model.dtype) for projection in projections]

    def summed(self, build: Build[Result]) -> Accumulator[Result]:
        """As far as this process knows, once all have added up theirs."""
        loaded, place = load(self.model, self.towards_base), processes()
        documents = CorpusExamples(CorpusStore.open(self.corpus))
        projections = self._projections(loaded)
        capture, sums = build(loaded, projections, self.curvature, torch.float32)
        batch_tokens = self.batch_tokens
        if batch_tokens is None:
            with _nothing_added(capture):
                batch_tokens = place.agreed(_measured(loaded, capture, documents, self.curvature))
        most = _most_rows(capture)
        steps = {"what": sums.what, "name": self.name, "batch_tokens": batch_tokens, "most": most}
        partly = PartialSums(
            StoreFolders(self.store).layers, fingerprint(steps | {"rank": place.rank, "size": place.size})
        )
        done, kept = partly.load()
        sums.state |= {key: torch.from_numpy(kept[key]) for key in sums.state if key in kept}
        everyone = batches_by_length(documents.lengths[self.windows], batch_tokens, loaded.reading.batching, most)
        batches = everyone[place.rank :: place.size]
        if done:
            run_logger().info("%s: going on after %s of %s batches", sums.what, done, len(batches))
        kept_at, pause = time.monotonic(), SECONDS_BETWEEN_CHECKPOINTS
        with progress(f"curvature: {sums.what}", len(batches), "batch") as bar, capture:
            bar.advance(done)
            for number, batch in enumerate(batches[done:], done + 1):
                for _ in curvature_passes(loaded, capture, documents, self.windows[batch], self.curvature):
                    sums.add(batch)
                bar.advance()
                if time.monotonic() - kept_at > pause:
                    begun = time.monotonic()
                    partly.save(number, {key: tensor.cpu().numpy() for key, tensor in sums.state.items()})
                    kept_at = time.monotonic()
                    pause = max(SECONDS_BETWEEN_CHECKPOINTS, PAUSE_OF_SAVING * (kept_at - begun))
            if loaded.sharded and len(batches) < -(-len(everyone) // place.size):
                # Sharded weights are gathered by all processes at once: one pass without use, while others have their
                # last.
                with _nothing_added(capture):
                    _pass_over(loaded, capture, documents, self.windows[everyone[0]], self.curvature)
        sums.state = place.total(sums.state)
        partly.remove()
        return sums


def _follow_fit(passes: StoredPasses, build: Build[Any]) -> None:
    passes.summed(build)


ACTIONS = {"fit": _follow_fit}


def _most_rows(capture: LayerCapture) -> int | None:
    return capture.most_rows if isinstance(capture, GradientCapture) else None


@contextmanager
def _nothing_added(capture: LayerCapture) -> Iterator[None]:
    """What a capture itself adds up is afterwards as it was before."""
    before = {key: tensor.clone() for key, tensor in capture.sums.items()} if isinstance(capture, FactorCapture) else {}
    yield
    if isinstance(capture, FactorCapture):
        capture.sums = before


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
