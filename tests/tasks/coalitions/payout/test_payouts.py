"""Payouts: they divide a whole, keep the order of values, give what the floor promises, and hide small sources."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataworth.tasks.coalitions.payout.payouts import SMALL_SOURCES, clipped_mass, payouts, published_names
from dataworth.tasks.coalitions.valuation import shares

TOKENS = np.array([10, 30, 60])


@given(st.sampled_from(["proportional", "floor", "tokens"]), st.floats(0, 1), st.integers(1, 9), st.integers(0, 99))
def test_payouts_divide_a_whole(rule, floor, n_sources, seed):
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((3, n_sources))
    values[:, 0] = np.abs(values[:, 0])
    found = payouts(values, generator.integers(1, 9, n_sources), rule, floor)
    np.testing.assert_allclose(found.parts.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(found.shares, shares(values))
    assert (found.parts >= 0).all()
    if rule == "floor":
        assert (found.parts >= floor / n_sources - 1e-15).all()
    if rule != "tokens":
        order = np.argsort(values, axis=1)
        assert (np.diff(np.take_along_axis(found.parts, order, axis=1), axis=1) >= -1e-15).all()


def test_the_three_rules():
    values = np.array([[3.0, 1.0, -2.0]])
    found = {rule: payouts(values, TOKENS, rule, 0.3).parts[0] for rule in ("proportional", "floor", "tokens")}
    np.testing.assert_allclose(found["proportional"], [0.75, 0.25, 0.0])
    np.testing.assert_allclose(found["floor"], [0.1 + 0.7 * 0.75, 0.1 + 0.7 * 0.25, 0.1])
    np.testing.assert_allclose(found["tokens"], [0.1, 0.3, 0.6])
    np.testing.assert_array_equal(payouts(values, TOKENS, "floor", 0.0).parts, shares(values))
    np.testing.assert_allclose(payouts(values, TOKENS, "floor", 1.0).parts, 1 / 3)


def test_without_a_positive_value_nothing_is_divided_but_by_size():
    values = np.array([[-1.0, 0.0, -2.0]])
    assert np.isnan(payouts(values, TOKENS, "proportional", 0.1).parts).all()
    assert np.isnan(payouts(values, TOKENS, "floor", 0.1).parts).all()
    assert payouts(values, TOKENS, "tokens", 0.1).parts.sum() == pytest.approx(1.0)
    assert np.isnan(payouts(values, 0 * TOKENS, "tokens", 0.1).parts).all()


def test_clipped_mass():
    found = clipped_mass(np.array([[3.0, 1.0, -2.0], [1.0, 0.0, 2.0], [-1.0, -1.0, 0.0]]))
    assert found[:2].tolist() == [0.5, 0.0]
    assert np.isnan(found[2])


def test_small_sources_share_a_name():
    assert published_names(["a", "b", "c"], np.array([4, 5, 1]), 5) == [SMALL_SOURCES, "b", SMALL_SOURCES]
    assert published_names(["a", "b"], np.array([0, 1]), 1) == [SMALL_SOURCES, "b"]
