"""A power cut leaves what the same command mends; `python -m tests.bench power` cuts it twenty times."""

import pytest

from tests.harness.power import can_mount, cut


def test_a_power_cut_is_mended_by_the_same_command(tmp_path):
    if not can_mount(tmp_path):
        pytest.skip("a disk of one's own needs the right to mount one")
    assert cut(tmp_path, 2, seed=3) == []
