"""Whatever goes wrong at a call that writes, the same command then ends as if nothing had.

`python -m tests.bench faults` disturbs thousands of calls; here it is a few of each command.
"""

from tests.harness.faults import HOW, swept

EVERY = {"withdraw": 17, "compact": 1100, "compact what was set aside": 1100, "verify": 6, "publish": 450}


def test_a_fault_at_any_call(tmp_path):
    found = swept(tmp_path, EVERY)
    assert {name: each["problems"] for name, each in found.items()} == {name: [] for name in EVERY}
    assert all(each["faults"] >= len(HOW) for each in found.values())
