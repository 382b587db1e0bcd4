"""Confidence intervals of a mean from its standard error, and from its samples where these are skewed."""

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

__all__ = ["skewed_interval", "student_interval"]

Ends = tuple[Float[np.ndarray, "q s"], Float[np.ndarray, "q s"]]


def student_interval(
    values: Float[np.ndarray, "q s"], errors: Float[np.ndarray, "q s"], degrees: int, confidence: float
) -> Ends:
    """Low and high end of Student's t interval; NaN where not a degree of freedom is left."""
    quantile = student.ppf(0.5 + confidence / 2, degrees) if degrees > 0 else np.nan
    reach = np.multiply(quantile, errors, out=np.zeros_like(errors), where=errors != 0)
    return values - reach, values + reach


def skewed_interval(samples: Float[np.ndarray, "p q s"], confidence: float) -> Ends:
    """Low and high end of an interval for the mean of independent samples that may be skewed.

    mean - sd g⁻¹(± quantile / sqrt(p)), with g⁻¹(x) = 3 / skew (cbrt(1 + skew (x - skew / 6p)) - 1), which
    takes the first order of skewness off Student's statistic. It covers as the bootstrap of that statistic does,
    without its draws.

    Source: Hall 1992, "On the removal of skewness by transformation" (JRSS B 54), section 2.
    """
    p = len(samples)
    mean = samples.mean(axis=0)
    if p < 3:
        errors = samples.std(axis=0, ddof=1) / np.sqrt(p) if p == 2 else np.full_like(mean, np.nan)
        return student_interval(mean, errors, p - 1, confidence)
    centred = samples - mean
    spread = np.sqrt((centred**2).sum(axis=0) / (p - 1))
    cubes = (centred**3).mean(axis=0)
    # A skew of 0 stands for its limit, Student's interval, to which 1e-6 is as near as float64 tells.
    skew = np.divide(cubes, spread**3, out=np.zeros_like(mean), where=spread**3 > 0)
    skew = np.where(np.abs(skew) < 1e-6, 1e-6, skew)
    quantile = student.ppf(0.5 + confidence / 2, p - 1) / np.sqrt(p)
    high, low = (3 / skew * (np.cbrt(1 + skew * (x - skew / (6 * p))) - 1) for x in (-quantile, quantile))
    return mean - spread * low, mean - spread * high
