"""Utilities: no coalition is evaluated twice, and what is known can be handed on."""

import numpy as np
import pytest

from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.coalitions.estimation.utilities import Utilities


class Counted:
    """A game that keeps what it was asked."""

    def __init__(self, queries=2):
        self.batches = []
        self.queries = queries

    def __call__(self, masks):
        self.batches.append(masks)
        return np.stack([masks.sum(axis=1) * (q + 1.0) for q in range(self.queries)], axis=1)


@pytest.mark.parametrize("n", [1, 3, 8, 9, 17])
def test_each_coalition_is_evaluated_once(n):
    game, generator = Counted(), np.random.default_rng(0)
    remembered = Utilities(game, n)
    for _ in range(3):
        masks = generator.random((20, n)) < 0.5
        masks = np.concatenate([masks, masks[::-1]])
        assert (remembered(masks) == Counted()(masks)).all()
    asked = np.concatenate(game.batches)
    assert len(asked) == len(np.unique(asked, axis=0)) == remembered.asked == remembered.evaluated


def test_what_is_known_is_handed_on():
    first = Utilities(Counted(), 9)
    first(all_coalitions(9)[:100])
    masks, utilities = first.everything()
    assert (utilities == Counted()(masks)).all()
    game = Counted()
    second = Utilities(game, 9, (masks, utilities))
    assert second.evaluated == second.asked == 0
    assert (second(masks) == utilities).all()
    assert not game.batches
    second(all_coalitions(9)[:110])
    assert (second.asked, second.evaluated) == (110, 10)


def test_a_utility_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        Utilities(lambda masks: np.full((len(masks), 1), np.nan), 2)(all_coalitions(2))
    with pytest.raises(ValueError, match="by query"):
        Utilities(lambda masks: np.zeros(len(masks)), 2)(all_coalitions(2))
