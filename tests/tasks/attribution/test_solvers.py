"""Solvers on products against dense linear algebra."""

import numpy as np
import pytest

from dataworth.tasks.attribution.solvers import NotConvergedError, conjugate_gradients, largest_eigenvalue, lissa

SIZE = 12


@pytest.fixture
def matrix():
    """Positive definite, eigenvalues 0.5 to 6."""
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE)))[0]
    return vectors @ np.diag(np.linspace(0.5, 6, SIZE)) @ vectors.T


@pytest.fixture
def right():
    drawn = np.random.default_rng(1).standard_normal((3, SIZE))
    drawn[1] = 0
    return drawn


def test_conjugate_gradients(matrix, right):
    found = conjugate_gradients(lambda v: v @ matrix, right, 1e-12, SIZE + 2)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right.T).T, rtol=1e-9, atol=1e-12)
    assert conjugate_gradients(lambda v: v @ matrix, right[:0], 1e-12, 5).shape == (0, SIZE)


def test_conjugate_gradients_that_do_not_converge(matrix, right):
    with pytest.raises(NotConvergedError, match="3 iterations"):
        conjugate_gradients(lambda v: v @ matrix, right, 1e-12, 3)
    with pytest.raises(NotConvergedError, match="negative"):
        conjugate_gradients(lambda v: v @ (matrix - 3 * np.eye(SIZE)), right, 1e-12, 50)


def test_largest_eigenvalue(matrix):
    assert largest_eigenvalue(lambda v: v @ matrix, SIZE, seed=0, tolerance=1e-8) == pytest.approx(6, rel=1e-6)
    with pytest.raises(NotConvergedError, match="2 iterations"):
        largest_eigenvalue(lambda v: v @ matrix, SIZE, seed=0, tolerance=1e-12, most_iterations=2)


def test_lissa_is_the_series(matrix, right):
    found = lissa(lambda step, v: v @ matrix, right, scale=6.6, depth=5)
    step = np.eye(SIZE) - matrix / 6.6
    series = sum(np.linalg.matrix_power(step, power) for power in range(6)) / 6.6
    np.testing.assert_allclose(found, right @ series, rtol=1e-12, atol=1e-15)
    found = lissa(lambda step, v: v @ matrix, right, scale=6.6, depth=400)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right.T).T, rtol=1e-9, atol=1e-12)


def test_lissa_that_diverges(matrix, right):
    with pytest.raises(NotConvergedError, match="scale"):
        lissa(lambda step, v: v @ matrix, right, scale=2.0, depth=2000)
