"""Fisher, damping and the damped inverse against dense formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tasks.curvature.config import DampingConfig
from tasks.curvature.damping import damping
from tasks.curvature.fisher import FisherSum
from tasks.curvature.precondition import DampedInverse, eigendecomposition

LAYERS = [{"first_column": 0, "n_columns": 3}, {"first_column": 3, "n_columns": 2}]


def test_fisher_is_the_mean_over_examples_however_they_come():
    rows = torch.randn(11, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fisher = FisherSum(LAYERS)
    for part in (rows[:4], rows[4:4], rows[4:5], rows[5:]):
        fisher.add(part)
    first, second = fisher.mean()
    np.testing.assert_allclose(first, np.mean([np.outer(row[:3], row[:3]) for row in rows.numpy()], axis=0))
    np.testing.assert_allclose(second, np.mean([np.outer(row[3:], row[3:]) for row in rows.numpy()], axis=0))


def test_fisher_of_no_example_is_refused():
    with pytest.raises(ValueError, match="no example"):
        FisherSum(LAYERS).mean()


def test_relative_damping_ignores_null_directions():
    """The plain mean would fall with the number of null directions, and with it the damping."""
    config = DampingConfig(rule="relative", value=0.1)
    few = damping(np.array([4.0, 2.0, 1e-9]), config)
    many = damping(np.concatenate([[4.0, 2.0], np.full(4000, 1e-9)]), config)
    assert few == many == pytest.approx(0.3)


def test_absolute_damping_is_the_value():
    assert damping(np.array([4.0, 2.0]), DampingConfig(rule="absolute", value=0.25)) == 0.25


@pytest.mark.parametrize("eigenvalues", [np.zeros(3), np.zeros(0)])
def test_relative_damping_of_no_curvature_is_refused(eigenvalues):
    with pytest.raises(ValueError, match="not defined"):
        damping(eigenvalues, DampingConfig())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(0, 4), st.floats(1e-3, 10.0), st.data())
def test_damped_inverse_is_the_dense_solve(k, n, strength, data):
    elements = st.floats(-3, 3)
    root = data.draw(arrays(np.float64, (k, k), elements=elements))
    gradients = data.draw(arrays(np.float64, (n, k), elements=elements))
    matrix = root @ root.T
    inverse = DampedInverse(*eigendecomposition(matrix), strength)
    expected = np.linalg.solve(matrix + strength * np.eye(k), gradients.T).T
    np.testing.assert_allclose(inverse.applied(gradients), expected, rtol=1e-6, atol=1e-9)
    norms = (inverse.whitened(gradients) ** 2).sum(axis=1)
    np.testing.assert_allclose(norms, np.einsum("nk,nk->n", gradients, expected), rtol=1e-6, atol=1e-9)
