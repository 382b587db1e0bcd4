"""The truth of the invented facts: which coalitions are trained on, and the Shapley value that is told from them."""

import numpy as np
import pytest

from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from tests.bench.facts import against, share_error
from tests.reference.tuned_facts import MASKS, SOURCES, named, shapley_estimate


def test_everybody_is_in_half_of_the_pairs():
    assert len({named(mask) for mask in MASKS}) == len(MASKS) == 30
    sizes = MASKS.sum(axis=1)
    assert np.bincount(sizes).tolist() == [1, 6, 6, 4, 6, 6, 1]
    assert (MASKS.sum(axis=0) == len(MASKS) / 2).all()
    two = MASKS[sizes == 2]
    assert (two.sum(axis=0) == 2).all()


def test_the_value_is_exact_where_all_is_known_or_everything_adds_up():
    generator = np.random.default_rng(0)
    masks = all_coalitions(len(SOURCES))
    worth = generator.standard_normal((len(masks), 3))
    exact = exact_semivalues(masks, worth, size_weights(len(SOURCES), "shapley"))
    everything = {named(mask): row for mask, row in zip(masks, worth, strict=True)}
    np.testing.assert_allclose(shapley_estimate(everything), exact.T, atol=1e-10)
    values = generator.standard_normal((len(SOURCES), 3))
    some = {named(mask): mask @ values + 5.0 for mask in MASKS}
    np.testing.assert_allclose(shapley_estimate(some), values, atol=1e-10)


def test_30_of_64_coalitions_leave_4_per_cent_of_a_game_that_saturates():
    masks, strength = all_coalitions(len(SOURCES)), np.array([4.0, 0.3, 1.0, 1.5, 0.1, 0.2])
    worth = -10 / (1 + masks @ strength)[:, None]
    exact = exact_semivalues(masks, worth, size_weights(len(SOURCES), "shapley"))[0]
    known = {named(mask): -10 / (1 + mask @ strength) * np.ones(1) for mask in MASKS}
    assert share_error(shapley_estimate(known)[:, 0], exact) < 0.04


def test_errors_beside_their_floor():
    values = np.array([3.0, 0, 1, 1, 0, 0])
    seeds = [{named(mask): np.array([mask @ (values + shift)]) for mask in MASKS} for shift in (0.0, 0.0)]
    row = against(values, seeds)
    assert row["share error"] == row["floor"] == 0
    assert against(np.ones(6), seeds)["share error"] == pytest.approx(0.5)
    assert against(np.ones(6), seeds)["spearman"] is None
