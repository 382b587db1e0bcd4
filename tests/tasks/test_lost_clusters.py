"""What Dask raises where a scheduler is gone, as one sentence; what a part of the work raises, as it is."""

import errno
from types import SimpleNamespace

import pytest
from distributed import CancelledError
from distributed.comm.core import CommClosedError

from dataworth.storage.errors import WorkersLostError
from dataworth.tasks.cluster import windowed

ADDRESS = "tcp://user:secret@127.0.0.1:8786"
GONE = "the Dask scheduler at tcp://…@127.0.0.1:8786 went away while scoring: run again once it is back"


def results(error, status):
    """Of two works, the first of which is handed out in vain."""

    def submit(_work, _shared):
        raise error

    client = SimpleNamespace(scheduler=SimpleNamespace(addr=ADDRESS), status=status)
    return list(windowed(client, "scoring", [1, 2], submit, 1))


@pytest.mark.parametrize(
    "error",
    [
        CommClosedError("in <TCP>"),
        CancelledError("a"),
        TimeoutError("no answer"),
        OSError(f"Timed out trying to connect to {ADDRESS} after 20 s"),  # which has no number
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_scheduler_that_is_gone(error):
    with pytest.raises(WorkersLostError) as caught:
        results(error, "connecting")
    assert str(caught.value) == GONE


def test_what_a_part_of_the_work_raises():
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left") as caught:
        results(full, "running")
    assert caught.value is full
