"""The lambda of (H + lambda I)^-1 for one layer."""

import numpy as np
from jaxtyping import Float

from dataworth.tasks.curvature.config import DampingConfig

__all__ = ["MASS_THRESHOLD", "damping"]

# Eigenvalues below this share of the largest are noise of rounding and of too few examples: in a space of k^2
# dimensions they would dilute the mean, and with it the damping.
MASS_THRESHOLD = 1e-6


def damping(eigenvalues: Float[np.ndarray, " k"], config: DampingConfig) -> float:
    """lambda of a layer, in the units of its eigenvalues (nats squared per parameter squared, mean over examples).

    `absolute`: the value. `relative`: the value times the mean of the eigenvalues above MASS_THRESHOLD of the largest.

    Raises:
        ValueError: `relative` for a curvature that is zero.
    """
    if config.rule == "absolute":
        return config.value
    largest = float(eigenvalues.max(initial=0.0))
    if not largest > 0:
        raise ValueError("the curvature of a layer is zero, so that relative damping is not defined")
    return config.value * float(eigenvalues[eigenvalues > MASS_THRESHOLD * largest].mean())
