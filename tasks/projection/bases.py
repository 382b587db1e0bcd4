"""Bases of the two sides of a layer.

Source: Choe et al. 2024 (arXiv 2405.13954), section 3.1; rows are scaled so that inner products keep their expectation.
"""

import hashlib
from typing import Literal

import numpy as np
from jaxtyping import Float

__all__ = ["Side", "random_basis"]

Side = Literal["input", "output"]


def random_basis(layer: str, side: Side, size: int, rank: int, seed: int) -> Float[np.ndarray, "k size"] | None:
    """Gaussian rows with variance 1/k, so that E[(A x) . (A y)] = x . y.

    The generator is keyed by seed, layer name and side: the basis is the same in any process, on any device, in any
    order of layers.

    Args:
        layer: the layer's name.
        side: of the layer.
        size: dimensions of the side.
        rank: dimensions to keep.
        seed: of the run.

    Returns:
        (k, size) float32 with k = rank; None, which stands for the identity, where rank >= size.
    """
    if rank >= size:
        return None
    key = hashlib.sha256(f"{seed}\0{layer}\0{side}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(int.from_bytes(key[:16], "little")))
    return (generator.standard_normal((rank, size)) / np.sqrt(rank)).astype(np.float32)
