"""Fisher, damping and the damped inverse against dense formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dataworth.tasks.curvature.config import DampingConfig
from dataworth.tasks.curvature.damping import damping
from dataworth.tasks.curvature.lowrank import LowRankSum, gaussian_matrix, low_rank_plus_diagonal, spectrum
from dataworth.tasks.curvature.precondition import DampedInverse, KroneckerInverse, damped_inverse, eigendecomposition
from dataworth.tasks.curvature.sums import EigenvalueSum, FisherSum, GroupedFisherSum

LAYERS = {0: {"first_column": 0, "n_columns": 3}, 1: {"first_column": 3, "n_columns": 2}}


def test_fisher_is_the_sum_over_examples_however_they_come():
    rows = torch.randn(11, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fisher = FisherSum(LAYERS)
    for part in (rows[:4], rows[4:4], rows[4:5], rows[5:]):
        fisher.add(part)
    for number, block in enumerate((rows[:, :3].numpy(), rows[:, 3:].numpy())):
        np.testing.assert_allclose(fisher.sums[str(number)], sum(np.outer(row, row) for row in block))


def test_fisher_by_group_adds_up_to_the_same_however_examples_are_grouped():
    rows = torch.randn(11, 5, generator=torch.Generator().manual_seed(0))
    groups = np.array([0, 2, 0, 1, 2, 2, 0, 1, 1, 0, 2])
    found = GroupedFisherSum(list(LAYERS.values()), groups, 4)
    one = GroupedFisherSum(list(LAYERS.values()), np.zeros(11, int), 1)
    for batch in (np.array([3, 0, 7]), np.array([], int), np.array([1, 2, 4, 5, 6, 8, 9, 10])):
        found.add(rows[batch], batch)
        one.add(rows[batch], batch)
    for number, columns in enumerate((slice(0, 3), slice(3, 5))):
        for group in range(4):
            block = rows[groups == group, columns].double()
            np.testing.assert_allclose(found.sums[str(number)][group], block.T @ block)
        np.testing.assert_allclose(found.sums[str(number)].sum(dim=0), one.sums[str(number)][0], rtol=1e-13)


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


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.floats(1e-2, 10.0), st.integers(0, 100))
def test_the_kronecker_inverse_is_the_dense_solve(k_out, k_in, n, strength, seed):
    generator = np.random.default_rng(seed)
    outputs = np.linalg.qr(generator.standard_normal((k_out, k_out)))[0]
    inputs = np.linalg.qr(generator.standard_normal((k_in, k_in)))[0]
    eigenvalues = generator.random((k_out, k_in))
    gradients = generator.standard_normal((n, k_out * k_in))
    inverse = KroneckerInverse(eigenvalues, outputs, inputs, strength)
    vectors = np.kron(outputs, inputs)
    dense = vectors @ np.diag(eigenvalues.ravel()) @ vectors.T + strength * np.eye(k_out * k_in)
    expected = np.linalg.solve(dense, gradients.T).T
    np.testing.assert_allclose(inverse.applied(gradients), expected, rtol=1e-8, atol=1e-10)
    norms = (inverse.whitened(gradients) ** 2).sum(axis=1)
    np.testing.assert_allclose(norms, np.einsum("nk,nk->n", gradients, expected), rtol=1e-4, atol=1e-5)


def test_relative_damping_of_kronecker_eigenvalues_is_that_of_all_of_them():
    matrices = {
        "eigenvalues": np.array([[4.0, 2.0], [1e-9, 0.0]]),
        "input_eigenvectors": np.eye(2),
        "output_eigenvectors": np.eye(2),
    }
    assert damped_inverse(matrices, DampingConfig(value=0.1)).damping == pytest.approx(0.3)


def test_corrected_eigenvalues_are_the_sum_of_squares_in_the_basis():
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((7, 9))
    layers = [{"first_column": 0, "k_out": 2, "k_in": 3}, {"first_column": 6, "k_out": 1, "k_in": 3}]
    inputs = [np.linalg.qr(generator.standard_normal((3, 3)))[0] for _ in layers]
    outputs = [np.linalg.qr(generator.standard_normal((layer["k_out"],) * 2))[0] for layer in layers]
    found = EigenvalueSum(layers, inputs, outputs)
    for part in (rows[:3], rows[3:3], rows[3:]):
        found.add(torch.from_numpy(part))
    for number, (layer, q_a, q_s) in enumerate(zip(layers, inputs, outputs, strict=True)):
        first, shape = layer["first_column"], (layer["k_out"], layer["k_in"])
        blocks = [row[first : first + shape[0] * shape[1]].reshape(shape) for row in rows]
        np.testing.assert_allclose(found.sums[str(number)], sum((q_s.T @ block @ q_a) ** 2 for block in blocks))


def test_the_low_rank_fisher_is_exact_where_the_fisher_has_that_rank():
    generator = np.random.default_rng(0)
    factors = generator.standard_normal((40, 5)) @ generator.standard_normal((5, 30))
    layers = {2: {"first_column": 1, "n_columns": 29}}
    found = LowRankSum(layers, rank=8, seed=3)
    for part in (factors[:11], factors[11:11], factors[11:]):
        found.add(torch.from_numpy(part))
    rows = factors[:, 1:]
    exact = rows.T @ rows / 40
    matrix = gaussian_matrix(29, 8, 3, 2)
    low_rank, residual = low_rank_plus_diagonal(
        found.sums["sketch 2"].numpy() / 40, matrix, found.sums["diagonal 2"].numpy() / 40
    )
    np.testing.assert_allclose(low_rank @ low_rank.T, exact, rtol=1e-6, atol=1e-8)
    assert residual.max() < 1e-6


def test_the_low_rank_fisher_keeps_the_diagonal_and_most_of_a_decaying_spectrum():
    generator = np.random.default_rng(1)
    vectors = np.linalg.qr(generator.standard_normal((60, 60)))[0]
    exact = vectors @ np.diag(2.0 ** -np.arange(60.0)) @ vectors.T
    matrix = gaussian_matrix(60, 12, 0, 0)
    low_rank, residual = low_rank_plus_diagonal(exact @ matrix, matrix, np.diag(exact))
    found = low_rank @ low_rank.T + np.diag(residual)
    np.testing.assert_allclose(np.diag(found), np.diag(exact), rtol=1e-9)
    assert np.linalg.norm(found - exact) < 0.01 * np.linalg.norm(exact)
    assert spectrum(low_rank, residual).sum() == pytest.approx(np.trace(exact), rel=1e-9)


def test_the_low_rank_fisher_of_nothing_is_nothing():
    low_rank, residual = low_rank_plus_diagonal(np.zeros((5, 2)), gaussian_matrix(5, 2, 0, 0), np.zeros(5))
    assert np.abs(low_rank).max() < 1e-6
    assert residual.max() < 1e-6


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 3), st.floats(1e-2, 10.0), st.integers(0, 100))
def test_the_woodbury_inverse_is_the_dense_solve(k, rank, n, strength, seed):
    generator = np.random.default_rng(seed)
    low_rank, residual = generator.standard_normal((k, rank)), generator.random(k)
    gradients = generator.standard_normal((n, k))
    inverse = damped_inverse(
        {"low_rank": low_rank, "residual": residual}, DampingConfig(rule="absolute", value=strength)
    )
    dense = low_rank @ low_rank.T + np.diag(residual) + strength * np.eye(k)
    expected = np.linalg.solve(dense, gradients.T).T
    np.testing.assert_allclose(inverse.applied(gradients), expected, rtol=1e-7, atol=1e-9)
    norms = (inverse.whitened(gradients) ** 2).sum(axis=1)
    np.testing.assert_allclose(norms, np.einsum("nk,nk->n", gradients, expected), rtol=1e-3, atol=1e-4)
