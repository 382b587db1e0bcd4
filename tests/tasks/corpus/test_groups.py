"""Groupings: how they are written, the names of their groups, and that levels add up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.payout.levels import levels
from dataworth.tasks.corpus.groups import group_names, grouping_fields


def test_groupings_are_fields_joined():
    assert grouping_fields("source") == ("source",)
    assert grouping_fields("publisher > section") == ("publisher", "section")
    assert SourcesConfig(by=["publisher > section", "source", "publisher>section"]).by == [
        "publisher>section",
        "source",
    ]
    for wrong in ("", ">", "a>", "a>>b", "a>a"):
        with pytest.raises(ValueError, match="must name fields, each once"):
            grouping_fields(wrong)
        with pytest.raises(ValueError, match="must name fields, each once"):
            SourcesConfig(by=[wrong])


def test_names_of_groups():
    assert group_names([["a > b", "c"]]) == ["a > b", "c"]
    assert group_names([["p", "p"], [2020, True], [1.5, "x"]]) == ["p > 2020 > 1.5", "p > true > x"]
    with pytest.raises(ValueError, match="the value 'a > b' holds ' > ', which separates levels"):
        group_names([["p", "a > b"], ["s", "t"]])


texts = st.text(alphabet="a >", min_size=1, max_size=5)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
def test_different_groups_never_share_a_name(pairs):
    try:
        names = group_names(list(zip(*pairs, strict=True)))
    except ValueError:
        return
    assert len(set(names)) == len(set(pairs))


@given(st.integers(1, 3), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_levels_add_up(depth, n_documents, seed):
    generator = np.random.default_rng(seed)
    columns = [[f"{letter}{n}" for n in generator.integers(0, 3, n_documents)] for letter in "pqr"[:depth]]
    names = sorted(set(group_names(columns)))
    values = generator.standard_normal((2, len(names)))
    found = levels(names, depth)
    assert [level.number for level in found] == list(range(depth, 0, -1))
    assert found[0].names == names
    np.testing.assert_array_equal(found[0].summed(values), values)
    for level in found:
        totals = level.summed(values)
        for number, name in enumerate(level.names):
            own = [n for n, player in enumerate(names) if player == name or player.startswith(f"{name} > ")]
            np.testing.assert_allclose(totals[:, number], values[:, own].sum(axis=1), atol=1e-12)
        assert level.summed(np.ones(len(names), np.int64)).sum() == len(names)
