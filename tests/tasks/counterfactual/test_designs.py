"""Which documents are trained on again."""

import numpy as np
import pytest

from dataworth.tasks.counterfactual.designs import (
    followed_queries,
    random_subsets,
    tuning_split,
    without_best,
    without_each_source,
)


@pytest.mark.parametrize(("n", "fraction", "size"), [(10, 0.5, 5), (2, 0.9, 1), (3, 0.01, 1), (100, 0.25, 25)])
def test_subsets_have_one_size(n, fraction, size):
    assert (random_subsets(n, 7, fraction, 0).sum(axis=1) == size).all()


def test_more_subsets_begin_with_the_fewer():
    assert (random_subsets(20, 9, 0.5, 3)[:4] == random_subsets(20, 4, 0.5, 3)).all()
    assert (random_subsets(20, 4, 0.5, 3) != random_subsets(20, 4, 0.5, 4)).any()


def test_every_document_is_in_as_many_subsets_as_chance_has_it():
    counts = random_subsets(12, 4000, 0.25, 0).mean(axis=0)
    np.testing.assert_allclose(counts, 0.25, atol=0.03)


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_draw_from(n):
    with pytest.raises(ValueError, match="at least 2 documents"):
        random_subsets(n, 3, 0.5, 0)


def test_without_each_source():
    names, masks = without_each_source(["b", "a", "b"])
    assert names == ["a", "b"]
    assert masks.tolist() == [[True, False, True], [False, True, False]]


def test_without_the_best():
    scores = np.array([[0.0, 3.0, 3.0, 1.0], [9.0, 0.0, 0.0, 0.0]])
    masks = without_best(scores, np.array([0, 1]), 0.5)
    assert masks.tolist() == [[True, False, False, True], [False, False, True, True]]
    assert without_best(scores, np.array([1]), 0.01).tolist() == [[False, True, True, True]]


def test_halves_share_nothing():
    (subsets, queries), (other_subsets, other_queries) = tuning_split(9, 5, 1)
    assert sorted([*subsets, *other_subsets]) == list(range(9))
    assert sorted([*queries, *other_queries]) == list(range(5))
    with pytest.raises(ValueError, match="at least 6 subsets"):
        tuning_split(5, 5, 1)


def test_what_is_followed_is_evenly_among_what_is_reported():
    assert followed_queries(range(9), 3) == [0, 4, 8]
    assert followed_queries([2, 3, 5, 7], 2) == [2, 7]
    assert followed_queries([2, 3], 5) == [2, 3]
