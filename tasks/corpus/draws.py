"""Uniform numbers that draw an example's labels: its own, whatever batch, corpus, device or process it comes in."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

__all__ = ["label_uniforms"]


def label_uniforms(
    contents: Sequence[bytes], places: Sequence[int], n_targets: Sequence[int], draws: int, seed: int
) -> Float[np.ndarray, "m p"]:
    """One number in [0, 1) for each draw and target, keyed by the example and the seed.

    Args:
        contents: content hash of each example's document.
        places: which window of the document each example is.
        n_targets: targets of each example; their numbers follow one another.
        draws: m.
        seed: of the run.
    """
    parts = [np.empty((draws, 0))]
    for content, place, count in zip(contents, places, n_targets, strict=True):
        key = int.from_bytes(content[:16].ljust(16, b"\0"), "little")
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, place, key])))
        parts.append(generator.random((draws, count)))
    return np.concatenate(parts, axis=1)
