"""Whatever goes wrong at a call that writes, the same command then ends as if nothing had.

`python -m tests.bench faults` disturbs every call; a tenth of a second each, here it is a few of each command.
"""

import pytest

from tests.reference.faults import COMMANDS, HOW, swept

EVERY = {"withdraw": 12, "compact": 400, "compact what was set aside": 600, "verify": 12, "publish": 60}


@pytest.mark.parametrize("command", EVERY)
def test_a_fault_at_any_call(tmp_path, command):
    found = swept(tmp_path, command, EVERY[command])
    assert found["problems"] == []
    assert found["faults"] >= len(HOW)
    assert found["faults"] % len(HOW) == 0


def test_every_command_that_writes_is_disturbed():
    assert EVERY.keys() <= COMMANDS.keys()
