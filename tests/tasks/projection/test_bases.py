"""Random bases: reproducible anywhere, inner products keep their expectation."""

import subprocess
import sys

import numpy as np
import pytest

from tasks.projection.bases import random_basis


def test_the_basis_depends_on_seed_layer_and_side_alone():
    basis = random_basis("layers.0.q", "input", 12, 5, 7)
    assert basis.shape == (5, 12)
    assert basis.dtype == np.float32
    np.testing.assert_array_equal(basis, random_basis("layers.0.q", "input", 12, 5, 7))
    others = [("layers.0.q", "output", 7), ("layers.0.k", "input", 7), ("layers.0.q", "input", 8)]
    for name, side, seed in others:
        assert not np.array_equal(basis, random_basis(name, side, 12, 5, seed))


def test_another_process_makes_the_same_basis():
    code = "from tasks.projection.bases import random_basis;print(random_basis('l', 'input', 9, 4, 3).tobytes().hex())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == random_basis("l", "input", 9, 4, 3).tobytes().hex()


def test_inner_products_keep_their_expectation():
    x, y = np.arange(1.0, 7.0), np.array([3.0, -1.0, 2.0, 0.5, 0.0, 1.0])
    products = [
        (basis @ x) @ (basis @ y)
        for seed in range(4000)
        if (basis := random_basis("l", "input", 6, 4, seed)) is not None
    ]
    error = np.std(products) / np.sqrt(len(products))
    assert abs(np.mean(products) - x @ y) < 4 * error
    assert error < 0.05 * abs(x @ y)


@pytest.mark.parametrize("rank", [6, 7, 100])
def test_a_rank_that_keeps_everything_is_the_identity(rank):
    assert random_basis("l", "input", 6, rank, 0) is None
