"""Few directions of a layer in fewer coordinates a side, and what that loses.

The matrices of all queries share their sides: the leading left and right singular spaces of all of them together, as in
a Tucker decomposition of two modes (De Lathauwer et al. 2000, HOSVD). Grosse et al. 2023 (arXiv 2308.03296, section
3.2.2) cut each query by itself. Where a curvature is a Kronecker product, entries are weighted by the roots of its
eigenvalues: what a score loses then is what documents would have had there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from dataworth.tasks.curvature.kronecker import KroneckerInverse
from dataworth.tasks.curvature.precondition import Preconditioner
from dataworth.tasks.projection.logra import LayerProjection
from dataworth.tasks.projection.sides import Side, followed_by

__all__ = ["Cut", "Frame", "Grams"]

# Directions in which the curvature saw next to nothing: they are weighted as if it had seen this share of the mean.
LEAST = 1e-3


@dataclass(frozen=True)
class Frame:
    """Coordinates of a layer in which its curvature is diagonal, where it is a Kronecker product.

    Args:
        projection: of the layer.
        inverse: of its curvature; None: the identity.
    """

    projection: LayerProjection
    inverse: Preconditioner | None

    @property
    def shape(self) -> tuple[int, int]:
        """(k_out, k_in)."""
        return self.projection.k_out, self.projection.k_in

    @property
    def _kronecker(self) -> KroneckerInverse | None:
        return self.inverse if isinstance(self.inverse, KroneckerInverse) else None

    @property
    def rotations(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """From the projected space to these coordinates, one a row; None: they are the same."""
        kronecker = self._kronecker
        return (None, None) if kronecker is None else (kronecker.output_eigenvectors.T, kronecker.input_eigenvectors.T)

    @property
    def rotated(self) -> LayerProjection:
        """The projection to these coordinates: few tokens are rotated sooner than their gradient is."""
        outputs, inputs = self.rotations
        if outputs is None or inputs is None:
            return self.projection
        return self.projection.rotated(outputs, inputs)

    def solved(self, rows: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n o i"]:
        """(H + lambda I)^-1 g of each gradient g in these coordinates, float32 in them."""
        blocks, kronecker = rows.astype(np.float32).reshape(len(rows), *self.shape), self._kronecker
        if kronecker is not None:
            directions: np.ndarray = blocks / (kronecker.eigenvalues + kronecker.damping).astype(np.float32)
            return directions
        return blocks if self.inverse is None else self.inverse.applied(rows).astype(np.float32).reshape(blocks.shape)

    def whole(self, solved: Float[np.ndarray, "n o i"]) -> Float[np.ndarray, "n c"]:
        """Back in the projected space."""
        outputs, inputs = self.rotations
        if outputs is not None and inputs is not None:
            solved = _between(solved, outputs.T, inputs.T)
        return solved.reshape(len(solved), -1)

    def squares(self, solved: Float[np.ndarray, "n o i"]) -> Float[np.ndarray, " n"]:
        """Squared lengths of directions, weighted, float64."""
        weighted = _weighted(solved, *self.weights)
        lengths: np.ndarray = np.einsum("noi,noi->n", weighted, weighted, dtype=np.float64)
        return lengths

    @property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """(k_out,) and (k_in,): the root of what documents have in an entry is about the product of its two."""
        kronecker = self._kronecker
        if kronecker is None:
            return np.ones(self.shape[0]), np.ones(self.shape[1])
        seen = kronecker.eigenvalues + LEAST * kronecker.eigenvalues.mean()
        return np.sqrt(seen.mean(axis=1)), np.sqrt(seen.mean(axis=0) / seen.mean())


class Grams:
    """What the queries' directions of a layer have on either side, added up.

    Args:
        frame: of the layer.
    """

    def __init__(self, frame: Frame) -> None:
        self._outputs, self._inputs = (torch.zeros(size, size) for size in frame.shape)
        self._weights = frame.weights

    def add(self, solved: Float[np.ndarray, "n o i"], squares: Float[np.ndarray, " n"]) -> None:
        """Some queries' directions in the frame, each divided by its length, so that all count alike.

        Args:
            solved: their part in this layer.
            squares: of the lengths, over all layers, weighted.
        """
        lengths = np.sqrt(np.where(squares > 0, squares, 1.0)).astype(np.float32)
        weighted = torch.from_numpy(_weighted(solved, *self._weights) / lengths[:, None, None])
        flat = weighted.transpose(0, 1).flatten(1)
        self._outputs += flat @ flat.T
        flat = weighted.flatten(0, 1)
        self._inputs += flat.T @ flat

    def leading(self, error: float) -> tuple[np.ndarray, np.ndarray]:
        """(c, k) orthonormal rows of each side that leave out less than a share of what the directions have.

        Args:
            error: root of the share.
        """
        return _leading(self._outputs, error**2 / 2), _leading(self._inputs, error**2 / 2)


def _leading(gram: torch.Tensor, share: float) -> np.ndarray:
    eigenvalues, vectors = (each.numpy() for each in torch.linalg.eigh(gram.double()))
    tail = np.cumsum(np.maximum(eigenvalues, 0.0))
    n_left_out = int(np.searchsorted(tail, share * tail[-1], side="right")) if tail[-1] > 0 else len(tail) - 1
    kept: np.ndarray = vectors[:, min(n_left_out, len(tail) - 1) :].T[::-1]
    return np.ascontiguousarray(kept)


class _Moved(NamedTuple):
    """One side of a layer, cut or not.

    Args:
        side: of the projection that gradients go through.
        cut: (c, k) what turns directions of the frame into those of that side; None: it is not cut.
        back: (k, k) what turns directions of the frame back to the projected space, where it is not cut; None: nothing.
    """

    side: Side
    cut: np.ndarray | None
    back: np.ndarray | None


@dataclass(frozen=True)
class Cut:
    """A layer's projection in which all queries' directions are, and how they are moved there.

    Args:
        projection: that gradients go through.
        frame: of the directions.
        outputs, inputs: of the two sides.
    """

    projection: LayerProjection
    frame: Frame
    outputs: _Moved
    inputs: _Moved

    @classmethod
    def of(cls, frame: Frame, leading: Sequence[np.ndarray]) -> "Cut":
        """The cheapest of four: to cut both sides, one, or none.

        Args:
            frame: of the layer.
            leading: of both sides, see `Grams.leading`.
        """
        (k_out, k_in), (c_out, c_in) = frame.shape, (len(side) for side in leading)
        # Multiply-adds a token.
        costs = {
            (False, False): k_out * k_in,
            (True, False): c_out * k_out + c_out * k_in,
            (False, True): c_in * k_in + k_out * c_in,
            (True, True): c_out * k_out + c_in * k_in + c_out * c_in,
        }
        projection = frame.projection
        sides = ((projection.output_side, projection.n_outputs), (projection.input_side, projection.n_inputs))
        cheapest = min(costs, key=lambda each: costs[each])
        outputs, inputs = (
            _moved(*side, kept if is_cut else None, weights, rotation)
            for side, kept, is_cut, weights, rotation in zip(
                sides, leading, cheapest, frame.weights, frame.rotations, strict=True
            )
        )
        return cls(replace(projection, output_side=outputs.side, input_side=inputs.side), frame, outputs, inputs)

    def directions(
        self, solved: Float[np.ndarray, "n o i"]
    ) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, " n"]]:
        """Some queries' directions here, and the squares of what is left of their weighted lengths."""
        outputs, inputs = self.frame.weights
        kept = _between(solved, self.outputs.cut, self.inputs.cut)
        left = _weighted(
            kept,
            np.ones(1) if self.outputs.cut is not None else outputs,
            np.ones(1) if self.inputs.cut is not None else inputs,
        )
        squares = np.einsum("noi,noi->n", left, left, dtype=np.float64)
        moved = _between(kept, self.outputs.back, self.inputs.back)
        return moved.reshape(len(moved), -1), squares


def _moved(side: Side, n: int, kept: np.ndarray | None, weights: np.ndarray, rotation: np.ndarray | None) -> _Moved:
    if kept is None:
        return _Moved(side, None, None if rotation is None else rotation.T)
    basis = kept / weights if rotation is None else (kept / weights) @ rotation
    return _Moved(followed_by(side, n, basis).to(torch.device("cpu"), torch.float32), kept * weights, None)


def _weighted(solved: np.ndarray, outputs: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    weighted: np.ndarray = solved * outputs.astype(solved.dtype)[:, None] * inputs.astype(solved.dtype)
    return weighted


def _between(solved: np.ndarray, outputs: np.ndarray | None, inputs: np.ndarray | None) -> np.ndarray:
    """outputs @ each @ inputs^T."""
    if outputs is not None:
        solved = outputs.astype(solved.dtype) @ solved
    return solved if inputs is None else solved @ inputs.T.astype(solved.dtype)
