"""Ctrl-C is for the command alone: its workers, which a terminal signals, too, are ended by it without a word."""

import signal
from pathlib import Path

from dataworth.tasks.cluster import dask_client
from dataworth.tasks.configuration import ClusterConfig


def blocked():
    """Of the process that runs it: the signals that its main thread does not get."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigBlk"))
    mask = int(line.split()[1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def test_workers_are_not_interrupted_and_the_command_is():
    before = blocked()
    with dask_client(ClusterConfig(workers=1), 1) as client:
        assert signal.SIGINT in client.submit(blocked).result()
        assert blocked() == before
    assert signal.SIGINT not in blocked()
