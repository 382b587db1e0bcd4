"""Shared vocabulary: rarer words first, the text itself never changed."""

from hypothesis import given
from hypothesis import strategies as st

from dataworth.tasks.report.page.words import MAX_SHARED, Vocabulary


def test_rarer_words_come_first():
    vocabulary = Vocabulary(["the bag counts", "the sea", "The river counts", "the sea"])
    found = vocabulary.shared("The BAG counts the sea", "the bag that counts 7 of a sea")
    assert found.words == ("bag", "sea", "counts", "the")
    assert found.parts[:3] == (("The", True), (" ", False), ("BAG", True))


def test_words_of_most_passages_are_left_out_where_there_are_many():
    texts = [f"the passage {'bag ' * (number < 5)}number{number}" for number in range(12)]
    assert Vocabulary(texts).shared(texts[0], "the bag of passage number0").words == ("number0", "bag")


def test_signs_of_scripts_without_spaces_count_as_words():
    found = Vocabulary(["資料庫", "資源"]).shared("資料庫", "料庫")
    assert found.words == ("庫", "料")
    assert found.parts == (("資", False), ("料", True), ("庫", True))


def test_numbers_and_single_letters_are_no_words():
    assert Vocabulary(["a 12 x"]).shared("a 12 x", "a 12 x").words == ()


@given(st.lists(st.text(max_size=30), max_size=12), st.text(max_size=60), st.text(max_size=60))
def test_pieces_are_the_text(passages, passage, query):
    found = Vocabulary([*passages, passage]).shared(passage, query)
    assert "".join(text for text, _ in found.parts) == passage
    assert len(found.words) <= MAX_SHARED
    assert {text.casefold() for text, marked in found.parts if marked} <= set(found.words)
