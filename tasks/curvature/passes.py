"""Backward passes over examples under the curvature's own labels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import DataworthError, InputError, StoreError
from dataworth.storage.spelling import setting
from dataworth.tasks.capture.factors import FactorCapture
from dataworth.tasks.capture.hooks import CaptureError, LayerCapture
from dataworth.tasks.capture.losses import Labeller, data_labels, drawn_labels, every_class
from dataworth.tasks.capture.passes import backward_passes
from dataworth.tasks.corpus.examples import CorpusExamples, Examples
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.model.loading import LoadedModel
from dataworth.tasks.model.plain import Model, gradient_capture
from dataworth.tasks.projection.logra import LayerProjection

__all__ = ["curvature_passes", "label_passes", "label_rows"]


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

    with told_failures(input_ids.numel()):
        yield from backward_passes(*model.halves, input_ids, attention_mask, labels, labeller, capture)


@contextmanager
def told_failures(n_tokens: int) -> Iterator[None]:
    """What a pass fails with is one clear sentence.

    Args:
        n_tokens: of the pass.

    Raises:
        InputError: a layer cannot be captured, or the model cannot compute the texts.
        StoreError: the device has not enough memory.
    """
    try:
        yield
    except CaptureError as error:
        raise InputError(str(error)) from error
    except torch.OutOfMemoryError:
        raise StoreError(
            f"the device has not enough memory for {n_tokens} tokens: lower {setting('gradients.batch_tokens')}"
        ) from None
    except DataworthError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:  # a model's code decides which texts it cannot read
        raise InputError(f"the model cannot compute some texts ({' '.join(str(error).split())[:200]})") from error


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
