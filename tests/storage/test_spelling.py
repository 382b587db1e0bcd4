"""A setting is named as who reads of it would write it."""

import pytest

from dataworth.storage import spelling
from dataworth.storage.spelling import as_field, as_option, setting, spell, spelled


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    monkeypatch.setattr(spelling, "_doors", [as_option])


def test_options_are_the_frequent_ones_or_long():
    assert setting("sources.game") == "--game"
    assert setting("projection.rank") == "--projection.rank"


def test_a_block_names_them_otherwise_and_so_may_a_process():
    with pytest.raises(RuntimeError, match="^`sources.game`$"), spelled(as_field):
        raise RuntimeError(setting("sources.game"))
    assert setting("sources.game") == "--game"
    spell(as_field)
    assert setting("model.name") == "`model.name`"
