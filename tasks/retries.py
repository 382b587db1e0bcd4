"""When a task that failed is tried again: what was away may be back; what was wrong stays wrong."""

import errno
import os
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun

from dataworth.storage.errors import InputError, StoreUnreachableError, WorkersLostError

__all__ = ["RETRIED", "RETRIES", "may_help"]

RETRIES = 2
# Seconds before the first and the second.
RETRY_DELAYS = [1.0, 8.0]

PASSING = {
    *(errno.EAGAIN, errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH),
}


def may_help(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """A retry may help: a server, a network or workers were lost, and no input is wrong.

    Processes that torchrun started together are in step, and none of them begins again by itself.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return False
    failure = state.result(raise_on_failure=False)
    causes = []
    while isinstance(failure, BaseException):
        causes.append(failure)
        failure = failure.__cause__
    return not any(isinstance(cause, InputError) for cause in causes) and any(_passes(cause) for cause in causes)


def _passes(cause: BaseException) -> bool:
    if isinstance(cause, StoreUnreachableError | WorkersLostError | ConnectionError | TimeoutError):
        return True
    if isinstance(cause, OSError):
        return cause.errno in PASSING
    # MLflow's own class, whose import costs seconds.
    return type(cause).__name__ == "MlflowException"


# What a task is declared with: `@task(name="…", **RETRIED)`.
RETRIED: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay_seconds": RETRY_DELAYS,
    "retry_condition_fn": may_help,
}
