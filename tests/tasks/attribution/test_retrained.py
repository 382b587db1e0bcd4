"""Values by retraining, of games whose Shapley values are known."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from dataworth.tasks.attribution.retrained import LeaveOneOut, TruncatedMonteCarloShapley
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from tests.reference.in_memory import small_classifier, table

N, Q = 5, 3
EXAMPLES, QUERIES = table(N, 1), table(Q, 2)
ALL = np.array(list(product([False, True], repeat=N)))


def additive(masks):
    """Losses that fall by a share of each document."""
    return 7.0 - masks @ np.random.default_rng(0).standard_normal((N, Q))


def diminishing(masks):
    """Losses that fall by the root of what the documents hold together."""
    return 5.0 - np.sqrt(masks @ np.random.default_rng(0).random((N, Q)))


class Counted:
    def __init__(self, outcome):
        self.outcome, self.n_trainings = outcome, 0

    def __call__(self, masks):
        assert masks.dtype == bool
        self.n_trainings += len(masks)
        return self.outcome(masks)


def exact(outcome):
    return exact_semivalues(ALL, -outcome(ALL), size_weights(N, "shapley"))


def test_leave_one_out():
    outcome = Counted(diminishing)
    found = LeaveOneOut(outcome).fit([], EXAMPLES).score(QUERIES)
    everything = np.ones(N, bool)
    for left_out in range(N):
        without = np.arange(N) != left_out
        expected = diminishing(without[None])[0] - diminishing(everything[None])[0]
        np.testing.assert_allclose(found[:, left_out], expected)
    assert (found > 0).all()
    assert outcome.n_trainings == N + 1


def test_an_additive_game_is_recovered_exactly():
    expected = np.random.default_rng(0).standard_normal((N, Q)).T
    method = TruncatedMonteCarloShapley(additive, permutations=3).fit([small_classifier()], EXAMPLES)
    np.testing.assert_allclose(method.score(QUERIES), expected, atol=1e-12)
    np.testing.assert_allclose(method.standard_errors, 0, atol=1e-12)


def test_exact_shapley_within_the_standard_errors():
    method = TruncatedMonteCarloShapley(diminishing, permutations=800, seed=4).fit([], EXAMPLES)
    gap = np.abs(method.score(QUERIES) - exact(diminishing)) / method.standard_errors
    assert gap.max() < 4
    assert 0.4 < gap.mean() < 1.3
    few = TruncatedMonteCarloShapley(diminishing, permutations=8, seed=4).fit([], EXAMPLES)
    worth = diminishing(np.zeros((1, N), bool)) - diminishing(np.ones((1, N), bool))
    np.testing.assert_allclose(few.score(QUERIES).sum(axis=1), worth[0])


def test_truncation_spares_trainings():
    """A tolerance above what there is to gain: nobody is asked after the first step."""
    whole, spared, none = Counted(diminishing), Counted(diminishing), Counted(diminishing)
    TruncatedMonteCarloShapley(whole, permutations=50).fit([], EXAMPLES)
    assert whole.n_trainings == 2 + 50 * (N - 1)
    method = TruncatedMonteCarloShapley(spared, permutations=50, tolerance=0.6).fit([], EXAMPLES)
    assert 2 < spared.n_trainings < whole.n_trainings
    assert np.abs(method.score(QUERIES) - exact(diminishing)).max() < 0.6
    nothing = TruncatedMonteCarloShapley(none, permutations=50, tolerance=100.0).fit([], EXAMPLES)
    assert none.n_trainings == 2
    np.testing.assert_array_equal(nothing.score(QUERIES), 0)


@dataclass(frozen=True)
class Windows:
    """Three windows of two documents."""

    documents = np.array([0, 1, 0])
    n_examples, n_documents = 3, 2


def test_windows_share_what_their_document_is_worth():
    def outcome(masks):
        return 3.0 - masks @ np.array([[1.0], [0.5]])

    for method in (LeaveOneOut(outcome), TruncatedMonteCarloShapley(outcome, permutations=2)):
        np.testing.assert_allclose(method.fit([], Windows()).score(table(1, 2)), [[0.5, 0.5, 0.5]])


def test_what_is_refused():
    with pytest.raises(ValueError, match="fit the method"):
        LeaveOneOut(additive).score(QUERIES)
    with pytest.raises(ValueError, match="losses of 3 queries, got 2"):
        LeaveOneOut(additive).fit([], EXAMPLES).score(table(2, 2))
    with pytest.raises(ValueError, match=r"losses of 6 coalitions, got shape \(6,\)"):
        LeaveOneOut(lambda masks: additive(masks)[:, 0]).fit([], EXAMPLES)
    with pytest.raises(ValueError, match="permutations"):
        TruncatedMonteCarloShapley(additive, permutations=1)
