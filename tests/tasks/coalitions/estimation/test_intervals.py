"""Intervals: Student's, and one for skewed samples that covers where Student's does not."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from dataworth.tasks.coalitions.estimation.intervals import skewed_interval, student_interval


def test_students():
    sample = np.random.default_rng(0).normal(0, 1, 12)
    expected = ttest_1samp(sample, 0.0).confidence_interval(0.9)
    error = np.array([[sample.std(ddof=1) / np.sqrt(12)]])
    low, high = student_interval(np.array([[sample.mean()]]), error, 11, 0.9)
    assert (low[0, 0], high[0, 0]) == pytest.approx((expected.low, expected.high))


def test_without_a_degree_of_freedom_only_no_error_has_ends():
    low, high = student_interval(np.array([[1.0, 2.0]]), np.array([[0.0, 0.5]]), 0, 0.95)
    np.testing.assert_array_equal(low, [[1.0, np.nan]])
    np.testing.assert_array_equal(high, [[1.0, np.nan]])


def test_symmetric_samples_have_students_interval():
    sample = np.random.default_rng(0).normal(0, 1, 30)
    sample = np.concatenate([sample, -sample])[:, None, None]
    expected = student_interval(sample.mean(axis=0), sample.std(axis=0, ddof=1) / np.sqrt(60), 59, 0.95)
    assert np.ravel(skewed_interval(sample, 0.95)) == pytest.approx(np.ravel(expected), rel=1e-4)


@pytest.mark.parametrize("samples", [1, 2, 3, 5])
def test_few_samples_and_equal_ones(samples):
    low, high = skewed_interval(np.ones((samples, 1, 2)), 0.95)
    if samples == 1:
        assert np.isnan([low, high]).all()
        return
    assert (low <= 1).all()
    assert (high >= 1).all()
    assert high == pytest.approx(low)


def test_skewed_samples_are_covered_more_often_than_by_students():
    generator = np.random.default_rng(0)
    samples = generator.exponential(1, (15, 1, 4000)) ** 1.5
    mean = 1.3293403881791372  # gamma(2.5)
    low, high = skewed_interval(samples, 0.95)
    plain = student_interval(samples.mean(axis=0), samples.std(axis=0, ddof=1) / np.sqrt(15), 14, 0.95)
    covered, covered_plainly = ((a <= mean) & (mean <= b) for a, b in ((low, high), plain))
    assert covered_plainly.mean() < 0.9 < covered.mean() < 0.97
