"""Indexing killed 25 times at random moments ends with the bytes of a run that was never killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_twenty_five_kills_leave_no_trace(tmp_path, seed):
    found = subprocess.run(
        [sys.executable, "-m", "tests.harness.kills", tmp_path, str(seed), "25"],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        cwd=Path(__file__).parents[2],
    )
    assert found.returncode == 0, found.stderr
    seen = json.loads(found.stdout.splitlines()[-1])
    assert seen["kills"] == 25
    assert seen["shards"] > 60
    assert seen["done after the last kill"] > 10  # the kills met a store that grew
    assert seen["same bytes"], found.stderr
