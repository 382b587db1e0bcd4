"""Values from measured coalitions and a surrogate made from some: exact in the end, and right about their error."""

import numpy as np
import pytest

from dataworth.tasks.coalitions.estimation.designs import (
    all_coalitions,
    coalition_rows,
    firsts_and_lasts,
    without_repetition,
)
from dataworth.tasks.coalitions.estimation.interpolation import interpolated
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights

N, Q = 7, 4
EVERYTHING = all_coalitions(N)
SHAPLEY = size_weights(N, "shapley")
TOKENS = np.array([50.0, 20.0, 20.0, 9.0, 5.0, 3.0, 1.0])
ENDS = np.concatenate([np.zeros((1, N), bool), np.ones((1, N), bool), firsts_and_lasts(TOKENS)])


def measured_game(generator):
    """(2^N, q) utilities that saturate, and those of a surrogate that is off smoothly, but where it is made from."""
    good = np.abs(generator.normal(0, 1, (Q, N)))
    members = EVERYTHING.astype(float)
    utilities = 3 * np.sqrt(members @ good.T) - members @ np.abs(generator.normal(0, 0.3, (Q, N))).T
    near = np.exp(-0.3 * (members[:, None] != members[None]).sum(axis=2))
    off = np.linalg.cholesky(near + 1e-9 * np.eye(len(members))) @ generator.normal(0, 0.3, (len(members), Q))
    places = coalition_rows(ENDS)
    off -= near[:, places] @ np.linalg.solve(near[np.ix_(places, places)], off[places])
    return utilities, utilities + off


def estimate(utilities, surrogate, n_further, generator, left_out=None):
    masks = np.concatenate([ENDS, without_repetition(N, ENDS, n_further, generator)])
    if left_out is None:
        left_out = utilities[coalition_rows(ENDS[2:])]
    return interpolated(masks, utilities[coalition_rows(masks)], surrogate, left_out, SHAPLEY, 0.9)


def truth_of(utilities):
    found = exact_semivalues(EVERYTHING, utilities, SHAPLEY)
    return np.vstack([found, found.sum(axis=0)])


def test_a_coalition_knows_its_row():
    np.testing.assert_array_equal(coalition_rows(EVERYTHING), np.arange(2**N))


def test_everybody_is_last_and_first_and_larger_ones_come_first():
    found = firsts_and_lasts(TOKENS)
    assert found.sum(axis=1).tolist() == [N - 1] * N + [1] * N
    np.testing.assert_array_equal(found[N:], np.eye(N, dtype=bool))
    np.testing.assert_array_equal(firsts_and_lasts(np.array([3.0, 4.0])), [[False, True], [True, False]])


def test_coalitions_without_repetition_are_nested_by_seed_and_end_with_all():
    some, more = (without_repetition(N, ENDS, number, np.random.default_rng(3)) for number in (6, 30))
    np.testing.assert_array_equal(some, more[:6])
    left = without_repetition(N, ENDS, 10**6, np.random.default_rng(3))
    assert len({*coalition_rows(left).tolist(), *coalition_rows(ENDS).tolist()}) == 2**N == len(left) + len(ENDS)


def test_every_coalition_measured_is_exact_however_bad_the_surrogate():
    generator = np.random.default_rng(0)
    utilities, _ = measured_game(generator)
    found = estimate(utilities, generator.normal(0, 9, utilities.shape), 10**6, generator)
    np.testing.assert_allclose(found.values, truth_of(utilities), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.standard_errors, 0, atol=1e-9)
    assert found.n_coalitions == 2**N


def test_a_surrogate_that_is_right_leaves_no_error():
    generator = np.random.default_rng(1)
    utilities, _ = measured_game(generator)
    found = estimate(utilities, utilities, 10, generator)
    np.testing.assert_allclose(found.values, truth_of(utilities), atol=1e-9)
    np.testing.assert_allclose(found.standard_errors, 0, atol=1e-9)


def test_values_add_up_to_what_was_measured():
    generator = np.random.default_rng(2)
    utilities, surrogate = measured_game(generator)
    found = estimate(utilities, surrogate, 3, generator)
    total = utilities[coalition_rows(ENDS[[1]])[0]] - utilities[0]
    np.testing.assert_allclose(found.values.sum(axis=1), np.append(total, total.sum()))


@pytest.mark.parametrize("n_further", [10, 40])
def test_intervals_cover_and_shrink(n_further):
    inside, reach = [], []
    for repeat in range(60):
        generator = np.random.default_rng(repeat)
        utilities, surrogate = measured_game(generator)
        found = estimate(utilities, surrogate, n_further, generator)
        truth = truth_of(utilities)
        inside.append((found.low <= truth) & (truth <= found.high))
        reach.append((found.high - found.low).mean())
    assert 0.85 <= np.mean(inside) <= 0.95
    assert np.mean(reach) < {10: 1.0, 40: 0.6}[n_further]


def test_with_nothing_further_the_error_is_what_surrogates_miss_that_were_made_without():
    generator = np.random.default_rng(4)
    utilities, surrogate = measured_game(generator)
    ends = utilities[coalition_rows(ENDS[2:])]
    small, large = (estimate(utilities, surrogate, 0, generator, ends + off) for off in (0.1, 0.3))
    np.testing.assert_allclose(large.standard_errors, 3 * small.standard_errors)
    assert (small.standard_errors > 0).all()
    np.testing.assert_array_equal(small.values, large.values)


def test_another_order_is_refused():
    with pytest.raises(ValueError, match="expected nobody, everybody"):
        interpolated(ENDS[1:], np.zeros((len(ENDS) - 1, Q)), np.zeros((2**N, Q)), np.zeros((3, Q)), SHAPLEY)


def test_what_leaving_out_misses_counts_as_much_as_it_is_said_to():
    utilities, surrogate = measured_game(np.random.default_rng(4))
    left_out = utilities[coalition_rows(ENDS[2:])] + np.random.default_rng(5).normal(0, 1, (len(ENDS) - 2, Q))

    def reach(counts):
        given = ENDS, utilities[coalition_rows(ENDS)], surrogate, left_out, SHAPLEY, 0.9
        found = interpolated(*given, left_out_counts=counts)
        return (found.high - found.low) / 2

    whole, part = reach((1.0, 1.0)), reach((0.5, 0.2))
    np.testing.assert_allclose(part[:-1], 0.5 * whole[:-1])
    np.testing.assert_allclose(part[-1], 0.2 * whole[-1])
