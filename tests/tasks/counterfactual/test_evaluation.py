"""Rows of an audit from scores and outcomes that are known."""

import numpy as np
import pytest

from dataworth.tasks.counterfactual.choice import families
from dataworth.tasks.counterfactual.evaluation import Truth, ceiling_row, mean_with_error, method_rows, source_rows
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.projection.config import ProjectionConfig

N, Q, M = 30, 6, 40


def drawn(seed=0, noise=0.0, n_seeds=2):
    generator = np.random.default_rng(seed)
    worth = generator.normal(size=(Q, N))
    masks = generator.random((M, N)) < 0.5
    outcomes = worth @ masks.T + noise * generator.normal(size=(n_seeds, Q, M))
    return worth, Truth(masks, outcomes)


def test_the_truth_is_predicted_perfectly_and_nothing_is_below_itself():
    worth, truth = drawn()
    exact, again, reverse = method_rows({"exact": worth, "again": 3 * worth, "reverse": -worth}, truth)
    assert exact["lds"] == pytest.approx(1)
    assert exact["standard_error"] == pytest.approx(0, abs=1e-9)
    assert (again["below_first"], again["tied_with_first"]) == (0, True)
    assert (reverse["lds"], reverse["below_first"]) == (pytest.approx(-1), pytest.approx(2))
    assert not reverse["tied_with_first"]


def test_a_small_difference_of_noisy_methods_is_a_tie_and_a_large_one_is_not():
    worth, truth = drawn(noise=1.0)
    generator = np.random.default_rng(1)
    scores = {"good": worth + 0.1 * generator.normal(size=worth.shape)}
    scores |= {"as good": worth + 0.1 * generator.normal(size=worth.shape), "bad": generator.normal(size=worth.shape)}
    _, as_good, bad = method_rows(scores, truth)
    assert as_good["tied_with_first"]
    assert as_good["below_first_low"] < 0 < as_good["below_first_high"]
    assert not bad["tied_with_first"]
    assert bad["below_first_low"] > 0


def test_a_part_is_of_some_subsets_and_queries():
    worth, truth = drawn()
    subsets, queries = np.array([3, 7, 9]), np.array([1, 4])
    part = truth.part(subsets, queries)
    assert part.outcomes.shape == (2, 2, 3)
    np.testing.assert_array_equal(part.outcomes[0], (worth @ truth.masks.T)[np.ix_(queries, subsets)])
    assert (part.masks == truth.masks[subsets]).all()


def test_one_seed_has_no_ceiling():
    _, truth = drawn(n_seeds=1)
    assert ceiling_row(truth)["lds"] is None


def test_sources_are_ranked_by_what_leaving_them_out_does():
    worth, _ = drawn()
    absent = np.arange(N) % 5 == np.arange(5)[:, None]
    everything = worth.sum(axis=1)[None]
    without = everything[:, :, None] - worth @ absent.T
    found = source_rows({"exact": worth, "reverse": -worth}, absent, without, everything)
    assert found["exact"] == (pytest.approx(1), pytest.approx(0, abs=1e-12))
    assert found["reverse"][0] == pytest.approx(-1)


@pytest.mark.parametrize(("values", "mean"), [([], np.nan), ([2.0], 2.0), ([1.0, 3.0], 2.0)])
def test_means_say_what_they_do_not_know(values, mean):
    found, error = mean_with_error(values)
    np.testing.assert_equal(found, mean)
    assert np.isnan(error) == (len(values) < 2)


def test_what_is_tried_has_no_rank_twice_and_keeps_labels():
    curvature = CurvatureConfig(labels="empirical", draws=2)
    tried = families(ProjectionConfig(rank=20, seed=3), curvature, 1e-3, [12, 65, 64])
    ranks = [(each.curvature.kind, each.projection.rank) for each in tried]
    dense = [("fisher", rank) for rank in (8, 16, 20, 32)]
    assert ranks == dense + [("ekfac", rank) for rank in (8, 16, 20, 32, 64, 65)]
    assert {each.curvature.labels for each in tried} == {"empirical"}
    assert any(damping.rule == "absolute" for damping in tried[0].dampings)
    assert [each.projection.rank for each in families(ProjectionConfig(), curvature, None, [10, 9])] == [8, 10, 8, 10]
    assert all(d.rule == "relative" for d in families(ProjectionConfig(), curvature, None, [64])[0].dampings)
    candidate = next(tried[-1].candidates())
    assert candidate.described()["curvature"]["kind"] == "ekfac"
