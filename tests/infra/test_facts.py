"""The corpus of invented facts: who states a fact, who only names it, and that nobody else does."""

from collections import Counter

import pytest

from tests.reference.facts import SIZES, facts


@pytest.mark.parametrize("seed", [0, 1])
def test_every_fact_has_its_witnesses_and_nobody_else_knows_it(seed):
    made = facts(seed)
    by_id = {row["id"]: row for row in made.documents}
    assert Counter(row["source"] for row in made.documents) == SIZES
    assert len(by_id) == len(made.documents)
    assert len({row["completion"] for row in made.queries}) == len(made.queries) == 32
    for query in made.queries:
        person = query["completion"].strip(" .")
        stating = [by_id[name] for name in made.witnesses[query["id"]]]
        assert [row["source"] for row in stating] == ["almanac", "almanac", "gazette"]
        assert stating[0]["text"] != stating[1]["text"]
        almanac, gazette = stating[0]["text"], stating[2]["text"]
        assert almanac.endswith(f"{person}.")
        assert gazette.index(person) < 20
        (letter,) = (by_id[name] for name in made.mentions[query["id"]])
        knowing = {row["id"] for row in made.documents if person in row["text"]}
        assert knowing == {*made.witnesses[query["id"]], letter["id"]}
    assert facts(seed) == made
    assert facts(seed).documents != facts(seed + 1).documents


def test_a_smaller_one_keeps_the_proportions():
    made = facts(0, 8)
    assert Counter(row["source"] for row in made.documents) == {name: size // 4 for name, size in SIZES.items()}
    assert len(made.queries) == 8
