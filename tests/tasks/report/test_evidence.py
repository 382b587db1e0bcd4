"""What a valuation says of how far such shares were off is what README's table and the kept results say."""

import json
from pathlib import Path

import pytest

from dataworth.tasks.report.evidence import BENCH, TOKENS, evidence

ROOT = Path(__file__).parents[3]
# Rows of README's table, by what they cost.
ROWS = {"additive": "the model and its base", "merged": "the base and how it was trained", "checkpoints": "checkpoints"}


def row(start):
    (found,) = [line for line in (ROOT / "README.md").read_text().splitlines() if line.strip().startswith(f"| {start}")]
    return found


def spelled(told):
    return f"{told.by_package[0]:.2f} and {told.by_package[1]:.2f}, {told.together[0]:.2f} and {told.together[1]:.2f}"


@pytest.mark.parametrize("game", BENCH)
def test_the_figures_are_those_of_the_front_door(game):
    assert f"| {spelled(BENCH[game])} |" in row(ROWS[game])


def test_the_baseline_is_that_of_the_front_door():
    assert f"| {spelled(TOKENS)} |" in row("nothing: count tokens")


def test_the_figures_of_checkpoints_are_those_that_were_measured():
    rows = [each for path in sorted((ROOT / "tests/bench/results").glob("*.json")) for each in _truth(path)]
    for number, corpus in enumerate(("unequal", "held-out")):
        last = [each for each in rows if each["corpus"] == corpus and each["method"] == "ledger of 3 checkpoints"][-1]
        assert BENCH["checkpoints"].together[number] == pytest.approx(last["share error"], abs=0.0051)
        assert BENCH["checkpoints"].by_package[number] == pytest.approx(last["share error by group"], abs=0.0051)


def _truth(path):
    found = json.loads(path.read_text())
    rows = [row for name in found if name.startswith("truth") for row in found[name]]
    return [row for row in rows if (row.get("setting"), row.get("counterfactual")) == ("fine-tuned", "epochs")]


def test_it_is_said_where_such_shares_were_measured_and_nowhere_else():
    said = evidence("share", "ledger", {"missed half-way": 0.1}, of_language=True)
    assert said.startswith("On the bench's two corpora")
    assert "69% and 79%" in said
    assert evidence("share", "additive", {}, of_language=True)
    assert not evidence("share", "ledger", {}, of_language=True)
    assert not evidence("marginal", "additive", {}, of_language=True)
    assert not evidence("certified", "merged", {}, of_language=True)
    assert not evidence("share", "merged", {}, of_language=False)
    assert not evidence("share", "additive", {"fallback": "merged: far away"}, of_language=True)
