"""TRAK: a kernel regression on sketched gradients of the model's output, of one model or an ensemble.

Source: Park et al. 2023 (arXiv 2303.14186): equations 13 to 17, the ensemble's without its soft threshold; the
output of a classifier is log(p / (1 - p)).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float

from dataworth.tasks.attribution.attributor import Attributor
from dataworth.tasks.attribution.rows import example_rows, whole_space
from dataworth.tasks.corpus.examples import Examples, target_counts
from dataworth.tasks.model.plain import Model
from dataworth.tasks.projection.logra import layer_table
from dataworth.tasks.projection.sketch import SparseSketch

__all__ = ["TRAK", "FittedTRAK", "row_sketch"]


@dataclass(frozen=True)
class FittedTRAK:
    """What TRAK keeps of one model.

    Args:
        model: the checkpoint.
        sketch: of its rows.
        solved: (n, k) Phi (Phi^T Phi + ridge I)^-1, a row an example.
        doubts: (n,) 1 - p of each example's own labels.
    """

    model: Model
    sketch: SparseSketch
    solved: np.ndarray
    doubts: np.ndarray


def row_sketch(n_columns: int, dimensions: int, seed: int, number: int) -> SparseSketch:
    """The sketch of one model's whole row.

    Args:
        n_columns: of a row.
        dimensions: k, of what is kept.
        seed: of the run.
        number: of the model; each has a sketch of its own, so that their errors are independent.
    """
    generator = np.random.default_rng([seed, number])
    column = torch.from_numpy(generator.integers(0, dimensions, n_columns))
    sign = torch.from_numpy(generator.choice(np.array([-1.0, 1.0], np.float32), n_columns))
    return SparseSketch(column, sign, dimensions)


def features(
    model: Model, sketch: SparseSketch, examples: Examples
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, " n"]]:
    """phi = S grad f of each example, and 1 - p, float64; f = log(p / (1 - p)), grad f = -grad(-log p) / (1 - p).

    p is the probability of the class, or exp(-mean loss of a target) of a language model. An example whose loss rounds
    to zero, or that has no target, has a gradient of zero, and so do its features.

    Args:
        model: the checkpoint.
        sketch: from its rows to k dimensions.
        examples: whose features are wanted.
    """
    counts = np.maximum(target_counts(examples), 1)
    phi, doubts = np.zeros((examples.n_examples, sketch.size)), np.zeros(examples.n_examples)
    for numbers, rows, losses in example_rows(model, whole_space(model), examples):
        sketched = sketch.to(rows.device, rows.dtype).sketched(rows).double().cpu().numpy()
        doubt = -np.expm1(-losses.double().cpu().numpy() / counts[numbers])
        scale = np.divide(-1.0, doubt * counts[numbers], out=np.zeros_like(doubt), where=doubt > 0)
        phi[numbers], doubts[numbers] = sketched * scale[:, None], doubt
    return phi, doubts


def regression(phi: Float[np.ndarray, "n k"], ridge: float) -> Float[np.ndarray, "n k"]:
    """Phi (Phi^T Phi + ridge I)^-1.

    Args:
        phi: features of all examples.
        ridge: in the units of Phi^T Phi, a sum over examples.

    Raises:
        ValueError: Phi^T Phi + ridge I is singular.
    """
    eigenvalues, vectors = np.linalg.eigh(phi.T @ phi)
    eigenvalues = eigenvalues + ridge
    if eigenvalues[0] <= len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues[-1]:
        raise ValueError(
            f"the features of {len(phi)} examples do not span {phi.shape[1]} dimensions: take fewer, or a ridge above 0"
        )
    solved: np.ndarray = phi @ (vectors / eigenvalues) @ vectors.T
    return solved


class TRAK(Attributor):
    """(mean over models of phi(q)^T (Phi^T Phi)^-1 phi(z)) times (mean over models of 1 - p(z)).

    A score is what z added to the query's f = log(p / (1 - p)), which grows as its loss falls; it is not in nats.

    Args:
        dimensions: k of the sketch of a row; fewer than examples.
        ridge: added to the diagonal of Phi^T Phi, which is a sum over examples; the paper has none.
        seed: of the sketches.
    """

    def __init__(self, dimensions: int, ridge: float = 0.0, seed: int = 0) -> None:
        if dimensions < 1 or ridge < 0:
            raise ValueError(f"expected at least one dimension and a ridge of 0 or more, got {dimensions} and {ridge}")
        self.dimensions, self.ridge, self.seed = dimensions, ridge, seed
        self.fitted: list[FittedTRAK] = []

    def fit(self, models: Sequence[Model], examples: Examples) -> Self:
        """Sketch the examples' gradients under every model; n k floats each are kept.

        Raises:
            ValueError: the features do not span the dimensions, and there is no ridge.
        """
        fitted = []
        for number, model in enumerate(models):
            n_columns = sum(layer.n_columns for layer in layer_table(whole_space(model)))
            sketch = row_sketch(n_columns, self.dimensions, self.seed, number)
            phi, doubts = features(model, sketch, examples)
            fitted.append(FittedTRAK(model, sketch, regression(phi, self.ridge), doubts))
        self.fitted = fitted
        return self

    def score(self, queries: Examples) -> Float[np.ndarray, "q n"]:
        """One pass over the queries for each model."""
        if not self.fitted:
            raise ValueError("fit the method before it scores")
        terms = [features(entry.model, entry.sketch, queries)[0] @ entry.solved.T for entry in self.fitted]
        doubts = np.mean([entry.doubts for entry in self.fitted], axis=0)
        scores: Float[np.ndarray, "q n"] = np.mean(terms, axis=0) * doubts
        return scores
