"""What looks the same is folded into one, and what does not is not."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataworth.storage.names import folded
from dataworth.storage.withdrawals import Withdrawals
from tests.harness.hostile import ALIKE, NAMES


@pytest.mark.parametrize(
    "name",
    ["The Times ", " The Times", "The  Times", "The\u00a0Times", "The\tTimes", "The \u200bTimes", "\ufeffThe Times"],
)
def test_white_space_and_what_is_not_seen(name):
    assert folded(name) == "The Times"


def test_letters_are_kept():
    names = ["e", "é", "E", "ß", "ss", "ﬁ", "fi", "x²", "x2", "а", "a", "Times", "times"]
    assert len({folded(name) for name in names}) == len(names)


@given(st.text())
def test_both_forms_of_unicode_and_twice_is_once(name):
    forms = {folded(unicodedata.normalize(form, name)) for form in ("NFC", "NFD")}
    assert forms == {folded(name)}
    assert folded(folded(name)) == folded(name)


def test_hostile_names():
    assert len({folded(name) for name in NAMES}) == len(NAMES)
    assert {folded(name) for name in ALIKE} <= {folded(name) for name in NAMES}
    assert not set(ALIKE) & set(NAMES)


def test_what_was_withdrawn_does_not_come_back_by_a_space(tmp_path):
    assert Withdrawals(tmp_path).add(sources=["Café", "Cafe\u0301 "], documents=["d "]) == 2
    withdrawn = Withdrawals(tmp_path)
    assert withdrawn.add(sources=["Cafe\u0301"], documents=["d"]) == 0
    assert all(withdrawn.covers("x", name) for name in ("Café", "Cafe\u0301", "Café\u200b", " Café"))
    assert withdrawn.covers("d\u00a0", "other")
    assert not withdrawn.covers("x", "Cafe")
