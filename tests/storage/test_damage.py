"""Damage is never silent and never a traceback: files of every kind are damaged, and the same commands run again."""

import pytest

from tests.harness.damage import Valued, sweep, unnamed
from tests.reference.checkpoints import TEXTS

PLACES = 70  # every kind of file once; `python -m tests.bench damage` takes 2,000


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoints):
    return Valued(tmp_path_factory.mktemp("valued"), checkpoints["llama"], TEXTS)


def test_damaged_anywhere_the_commands_say_the_same_or_why_not(made):
    counts = sweep(made, PLACES, 0)
    assert sum(count.total() for count in counts.values()) == PLACES
    assert 40 < len(counts) <= PLACES
    assert sum(count["refused"] for count in counts.values()) > PLACES / 3


def test_verify_names_damage_in_every_kind_of_file(made):
    assert unnamed(made, 0) == []
