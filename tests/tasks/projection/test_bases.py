"""Random bases: reproducible anywhere, inner products keep their expectation."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dataworth.storage.layers import LayerStore
from dataworth.tasks.projection.bases import layer_projection, layer_rank, random_basis
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.logra import layer_table, projection_matrices, stored_projections
from dataworth.tasks.projection.sides import IdentitySide


def test_the_basis_depends_on_seed_layer_and_side_alone():
    basis = random_basis("layers.0.q", "input", 12, 5, 7)
    assert basis.shape == (5, 12)
    assert basis.dtype == np.float32
    np.testing.assert_array_equal(basis, random_basis("layers.0.q", "input", 12, 5, 7))
    others = [("layers.0.q", "output", 7), ("layers.0.k", "input", 7), ("layers.0.q", "input", 8)]
    for name, side, seed in others:
        assert not np.array_equal(basis, random_basis(name, side, 12, 5, seed))


def test_another_process_makes_the_same_basis():
    code = "from dataworth.tasks.projection.bases import random_basis as basis; "
    code += "print(basis('l', 'input', 9, 4, 3).tobytes().hex())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == random_basis("l", "input", 9, 4, 3).tobytes().hex()


def test_inner_products_keep_their_expectation():
    x, y = np.arange(1.0, 7.0), np.array([3.0, -1.0, 2.0, 0.5, 0.0, 1.0])
    products = []
    for seed in range(4000):
        basis = random_basis("l", "input", 6, 4, seed)
        products.append((basis @ x) @ (basis @ y))
    error = np.std(products) / np.sqrt(len(products))
    assert abs(np.mean(products) - x @ y) < 4 * error
    assert error < 0.05 * abs(x @ y)


@pytest.mark.parametrize("kind", ["random", "mask", "identity"])
@pytest.mark.parametrize("rank", [8, 9, 100])
def test_a_rank_that_keeps_everything_is_the_identity(kind, rank):
    projection = layer_projection("l", 7, 8, True, ProjectionConfig(kind=kind, rank=rank))
    assert projection.input_side == IdentitySide(7)
    assert projection.output_side == IdentitySide(8)


def gradient_of(projection, output_gradient, activation):
    return projection.gradient(
        projection.projected_output_gradient(output_gradient), projection.projected_activation(activation)
    )


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("kind", ["random", "mask", "factgrass"])
def test_projected_gradients_keep_their_inner_products_in_expectation(kind, has_bias):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 3, 5, generator=generator) for _ in range(2))
    d, e = (torch.randn(1, 3, 6, generator=generator) for _ in range(2))
    whole = layer_projection("l", 5 + has_bias, 6, has_bias, ProjectionConfig(kind="identity"))
    first, second = gradient_of(whole, d, x), gradient_of(whole, d + 0.3 * e, x + 0.3 * y)
    expected = float((first * second).sum())
    products = []
    for seed in range(3000):
        config = ProjectionConfig(kind=kind, rank=2, seed=seed)
        projection = layer_projection("l", 5 + has_bias, 6, has_bias, config)
        assert projection.n_columns == 4
        one, two = gradient_of(projection, d, x), gradient_of(projection, d + 0.3 * e, x + 0.3 * y)
        products.append(float((one * two).sum()))
    error = np.std(products) / np.sqrt(len(products))
    assert abs(np.mean(products) - expected) < 4 * error
    assert error < 0.1 * abs(expected)


@pytest.mark.parametrize("kind", ["random", "mask", "factgrass", "identity"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_projection_read_back_from_a_store_is_the_same(tmp_path, kind, has_bias):
    config = ProjectionConfig(kind=kind, rank=3, seed=4)
    made = layer_projection("l", 9 + has_bias, 7, has_bias, config)
    ref = LayerStore.write(tmp_path, "f", layer_table([made]), [projection_matrices(made)], {})
    (read,) = stored_projections(LayerStore.open(ref))
    assert read.n_columns == made.n_columns
    x, d = torch.randn(2, 4, 9), torch.randn(2, 4, 7)
    assert torch.equal(gradient_of(made, d, x), gradient_of(read, d, x))
    again = layer_projection("l", 9 + has_bias, 7, has_bias, config)
    assert torch.equal(gradient_of(made, d, x), gradient_of(again, d, x))
    if kind != "identity":
        other = layer_projection("another", 9 + has_bias, 7, has_bias, config)
        assert not torch.equal(gradient_of(made, d, x), gradient_of(other, d, x))


def test_ranks_by_pattern_number_and_fraction():
    config = ProjectionConfig(rank=4, ranks=["*.q=8", "*.mlp.*=0.25", "*.k=0.001"])
    assert [layer_rank(name, 40, config) for name in ("a.q", "a.mlp.up", "a.k", "a.v")] == [8, 10, 1, 4]
    assert layer_rank("a.q", 6, config) == 6
    for wrong in ("x", "=3", "*=0", "*=1.5", "*=9999", "*=x", "*="):
        with pytest.raises(ValidationError, match="is not PATTERN=RANK"):
            ProjectionConfig(ranks=[wrong])
