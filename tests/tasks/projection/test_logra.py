"""A projected gradient equals B G A^T of the dense gradient; the layer table tiles a row."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataworth.tasks.projection.logra import LayerProjection, layer_table
from dataworth.tasks.projection.sides import BasisSide, IdentitySide

sizes = st.integers(1, 6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), sizes, sizes, sizes, sizes, sizes, st.booleans(), st.booleans(), st.booleans())
def test_projected_gradient(n, t, n_in, n_out, k_in, k_out, bias, project_in, project_out):
    generator = torch.Generator().manual_seed(n + 7 * t)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    projection = LayerProjection(
        "l",
        n_in + bias,
        n_out,
        bias,
        BasisSide(draw(k_in, n_in + bias)) if project_in else IdentitySide(n_in + bias),
        BasisSide(draw(k_out, n_out)) if project_out else IdentitySide(n_out),
    )
    x, d = draw(n, t, n_in), draw(n, t, n_out)
    inputs = torch.cat([x, torch.ones(n, t, 1, dtype=torch.float64)], dim=2) if bias else x
    expected = torch.einsum("nto,nti->noi", d, inputs)
    if project_out:
        expected = projection.output_side.basis @ expected
    if project_in:
        expected = expected @ projection.input_side.basis.T
    found = projection.gradient(projection.projected_output_gradient(d), projection.projected_activation(x))
    torch.testing.assert_close(found, expected.flatten(1))
    assert found.shape[1] == projection.n_columns


def test_the_layer_table_gives_consecutive_columns():
    first = LayerProjection("a", 3, 2, True, IdentitySide(3), IdentitySide(2))
    second = LayerProjection("b", 5, 4, False, BasisSide(torch.ones(2, 5)), IdentitySide(4))
    table = layer_table([first, second])
    assert [(row.first_column, row.n_columns) for row in table] == [(0, 6), (6, 8)]
    assert [(row.k_in, row.k_out) for row in table] == [(3, 2), (2, 4)]
