"""Fisher, damping and the damped inverse against dense formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dataworth.storage.layer_table import Layer
from dataworth.tasks.curvature.config import DampingConfig
from dataworth.tasks.curvature.damping import damping
from dataworth.tasks.curvature.dense import Dense
from dataworth.tasks.curvature.kronecker import Covariances, Kronecker
from dataworth.tasks.curvature.lowrank import LowRank, gaussian_matrix
from dataworth.tasks.curvature.precondition import applied, curvature_of, self_influence
from dataworth.tasks.curvature.sums import EigenvalueSums, FisherSums, GroupedFisherSums

LAYERS = [Layer("a", 0, 3, k_in=3, k_out=1), Layer("b", 3, 2, k_in=2, k_out=1)]


def absolute(value):
    return DampingConfig(rule="absolute", value=value)


class Passed:
    """Hands out the rows that a backward pass would have left."""

    def __init__(self):
        self.left = None

    def rows(self):
        return self.left


def summed(sums, capture, rows, batches):
    """The sums after some batches of rows."""
    for batch in batches:
        capture.left = rows[batch]
        sums.add(batch)
    return sums


def test_fisher_is_the_sum_over_examples_however_they_come():
    rows = torch.randn(11, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batches = np.split(np.arange(11), [4, 4, 5])
    found = summed(FisherSums(capture := Passed(), LAYERS, 1, 0), capture, rows, batches).result(11)
    for entry, block in zip(found, (rows[:, :3].numpy(), rows[:, 3:].numpy()), strict=True):
        np.testing.assert_allclose(entry.matrix, sum(np.outer(row, row) for row in block) / 11)


def test_fisher_by_group_adds_up_to_the_same_however_examples_are_grouped():
    rows = torch.randn(11, 5, generator=torch.Generator().manual_seed(0))
    groups = np.array([0, 2, 0, 1, 2, 2, 0, 1, 1, 0, 2])
    batches = [np.array([3, 0, 7]), np.array([], int), np.array([1, 2, 4, 5, 6, 8, 9, 10])]

    def sums(of_each, n_groups):
        return summed(GroupedFisherSums(capture := Passed(), LAYERS, of_each, n_groups), capture, rows, batches)

    found, one = sums(groups, 4).result(1), sums(np.zeros(11, int), 1).result(1)
    for number, columns in enumerate((slice(0, 3), slice(3, 5))):
        for group in range(4):
            block = rows[groups == group, columns].double()
            np.testing.assert_allclose(found[number][group], block.T @ block)
        np.testing.assert_allclose(found[number].sum(axis=0), one[number][0], rtol=1e-13)


@pytest.mark.parametrize("max_columns", [2, 10])
def test_sums_go_on_from_their_state(max_columns):
    rows = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def of(batches, state=None):
        sums = FisherSums(capture := Passed(), LAYERS, 2, 0, max_columns)
        if state is not None:
            sums.state = state
        return summed(sums, capture, rows, batches)

    whole, rest = of([np.arange(4), np.arange(4, 6)]), of([np.arange(4, 6)], of([np.arange(4)]).state)
    for one, other in zip(whole.result(6), rest.result(6), strict=True):
        assert type(one) is type(other)
        for name, array in one.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[name])


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
    inverse = Dense(matrix).damped(absolute(strength))
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
    inverse = Kronecker(eigenvalues, outputs, inputs).damped(absolute(strength))
    vectors = np.kron(outputs, inputs)
    dense = vectors @ np.diag(eigenvalues.ravel()) @ vectors.T + strength * np.eye(k_out * k_in)
    expected = np.linalg.solve(dense, gradients.T).T
    np.testing.assert_allclose(inverse.applied(gradients), expected, rtol=1e-8, atol=1e-10)
    norms = (inverse.whitened(gradients) ** 2).sum(axis=1)
    np.testing.assert_allclose(norms, np.einsum("nk,nk->n", gradients, expected), rtol=1e-4, atol=1e-5)


def test_relative_damping_of_kronecker_eigenvalues_is_that_of_all_of_them():
    factors = Kronecker(np.array([[4.0, 2.0], [1e-9, 0.0]]), np.eye(2), np.eye(2))
    assert factors.damped(DampingConfig(value=0.1)).damping == pytest.approx(0.3)


def test_corrected_eigenvalues_are_the_sum_of_squares_in_the_basis():
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((7, 9))
    layers = [Layer("a", 0, 6, k_in=3, k_out=2), Layer("b", 6, 3, k_in=3, k_out=1)]
    factors = [
        Kronecker(
            np.zeros((layer.k_out, layer.k_in)),
            *(np.linalg.qr(generator.standard_normal((size, size)))[0] for size in (layer.k_out, layer.k_in)),
        )
        for layer in layers
    ]
    batches = np.split(np.arange(7), [3, 3])
    sums = EigenvalueSums(capture := Passed(), layers, factors)
    rotated = np.empty_like(rows)  # as the capture takes them
    for layer, factor in zip(layers, factors, strict=True):
        blocks = rows[:, layer.columns].reshape(7, layer.k_out, layer.k_in)
        rotated[:, layer.columns] = (factor.output_eigenvectors.T @ blocks @ factor.input_eigenvectors).reshape(7, -1)
    found = summed(sums, capture, torch.from_numpy(rotated), batches).result(7)
    for layer, factor, entry in zip(layers, factors, found, strict=True):
        q_s, q_a = factor.output_eigenvectors, factor.input_eigenvectors
        blocks = [row[layer.columns].reshape(layer.k_out, layer.k_in) for row in rows]
        np.testing.assert_allclose(entry.eigenvalues, sum((q_s.T @ block @ q_a) ** 2 for block in blocks) / 7)
        assert entry.output_eigenvectors is q_s
        assert entry.input_eigenvectors is q_a


def test_kfac_is_the_kronecker_product_of_its_covariances():
    generator = np.random.default_rng(0)
    roots = generator.standard_normal((3, 3)), generator.standard_normal((2, 2))
    inputs, outputs = (root @ root.T for root in roots)
    gradients = generator.standard_normal((4, 6))
    found = Covariances(inputs, outputs).kronecker().damped(absolute(0.5)).applied(gradients)
    dense = np.kron(outputs, inputs) + 0.5 * np.eye(6)
    np.testing.assert_allclose(found, np.linalg.solve(dense, gradients.T).T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "curvature",
    [
        Dense(np.diag([3.0, 1.0, 2.0])),
        LowRank(np.array([[1.0], [2.0], [0.0]]), np.array([0.5, 0.0, 1.0])),
        Kronecker(np.array([[1.0, 2.0, 3.0]]), np.eye(1), np.eye(3)),
    ],
)
def test_a_curvature_is_read_as_it_was_kept_and_counts_in_its_own_columns(curvature):
    again = curvature_of(curvature.arrays)
    assert type(again) is type(curvature)
    rows = np.random.default_rng(0).standard_normal((2, 7))
    inverse = again.damped(absolute(0.1))
    inverses = [(slice(1, 4), inverse), (slice(4, 6), None)]
    found = applied(rows, inverses)
    np.testing.assert_array_equal(found[:, [0, 6]], 0)
    np.testing.assert_array_equal(found[:, 4:6], rows[:, 4:6])
    np.testing.assert_array_equal(found[:, 1:4], curvature.damped(absolute(0.1)).applied(rows[:, 1:4]))
    np.testing.assert_allclose(self_influence(rows, inverses), (found * rows).sum(axis=1), rtol=1e-5)


def test_the_low_rank_fisher_is_exact_where_the_fisher_has_that_rank():
    generator = np.random.default_rng(0)
    factors = generator.standard_normal((40, 5)) @ generator.standard_normal((5, 30))
    layers = [Layer("narrow", 0, 1), Layer("wide", 1, 29)]
    sums = FisherSums(capture := Passed(), layers, 8, 3, max_columns=28)
    batches = np.split(np.arange(40), [11, 11])
    narrow, found = summed(sums, capture, torch.from_numpy(factors), batches).result(40)
    rows = factors[:, 1:]
    np.testing.assert_allclose(narrow.matrix, [[(factors[:, 0] ** 2).mean()]])
    np.testing.assert_allclose(found.low_rank @ found.low_rank.T, rows.T @ rows / 40, rtol=1e-6, atol=1e-8)
    assert found.residual.max() < 1e-6


def test_the_low_rank_fisher_keeps_the_diagonal_and_most_of_a_decaying_spectrum():
    generator = np.random.default_rng(1)
    vectors = np.linalg.qr(generator.standard_normal((60, 60)))[0]
    exact = vectors @ np.diag(2.0 ** -np.arange(60.0)) @ vectors.T
    matrix = gaussian_matrix(60, 12, 0, 0)
    kept = LowRank.of_sketch(exact @ matrix, matrix, np.diag(exact))
    found = kept.low_rank @ kept.low_rank.T + np.diag(kept.residual)
    np.testing.assert_allclose(np.diag(found), np.diag(exact), rtol=1e-9)
    assert np.linalg.norm(found - exact) < 0.01 * np.linalg.norm(exact)
    assert kept.spectrum.sum() == pytest.approx(np.trace(exact), rel=1e-9)


def test_the_low_rank_fisher_of_nothing_is_nothing():
    found = LowRank.of_sketch(np.zeros((5, 2)), gaussian_matrix(5, 2, 0, 0), np.zeros(5))
    assert np.abs(found.low_rank).max() < 1e-6
    assert found.residual.max() < 1e-6


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 3), st.floats(1e-2, 10.0), st.integers(0, 100))
def test_the_woodbury_inverse_is_the_dense_solve(k, rank, n, strength, seed):
    generator = np.random.default_rng(seed)
    low_rank, residual = generator.standard_normal((k, rank)), generator.random(k)
    gradients = generator.standard_normal((n, k))
    inverse = LowRank(low_rank, residual).damped(absolute(strength))
    dense = low_rank @ low_rank.T + np.diag(residual) + strength * np.eye(k)
    expected = np.linalg.solve(dense, gradients.T).T
    np.testing.assert_allclose(inverse.applied(gradients), expected, rtol=1e-7, atol=1e-9)
    norms = (inverse.whitened(gradients) ** 2).sum(axis=1)
    np.testing.assert_allclose(norms, np.einsum("nk,nk->n", gradients, expected), rtol=1e-3, atol=1e-4)
