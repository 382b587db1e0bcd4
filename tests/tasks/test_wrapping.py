"""What is tried again, and what is not."""

import errno

import pytest
from prefect.states import Failed

from dataworth.storage.errors import DataworthError, InputError, StoreBusyError, StoreUnreachableError, WorkersLostError
from dataworth.tasks.wrapping import may_help


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (InputError("a line"), False),
        (InputError("the number of an argument"), False),
        (StoreBusyError("another run"), False),
        (FileNotFoundError(errno.ENOENT, "no such file"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (ValueError("a bug"), False),
        (caused(InputError("no such bucket"), StoreUnreachableError("s3://b", "no")), False),
        (StoreUnreachableError("s3://b", "timed out"), True),
        (WorkersLostError("killed"), True),
        (ConnectionResetError("reset"), True),
        (OSError(errno.ESTALE, "stale"), True),
        (caused(DataworthError("MLflow did not take it"), type("MlflowException", (Exception,), {})()), True),
    ],
)
def test_only_what_may_pass_is_tried_again(error, again):
    assert may_help(None, None, Failed(data=error)) is again


def test_processes_in_step_do_not_begin_again(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not may_help(None, None, Failed(data=WorkersLostError("killed")))
