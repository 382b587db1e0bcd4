"""How a step becomes a Prefect task, and what a person sees of it there."""

import errno
import logging
import os
from collections.abc import Callable
from functools import wraps
from logging import LoggerAdapter
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from httpx import TransportError
from prefect import Task
from prefect.artifacts import create_link_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import MissingContextError, PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.logging.loggers import task_run_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from dataworth.storage.errors import InputError, StoreUnreachableError, WorkersLostError
from dataworth.tasks.devices import on_a_device
from dataworth.tasks.progress import Sink, set_sink

__all__ = ["RETRIES", "PrefectSink", "as_task", "may_help"]

P = ParamSpec("P")
R = TypeVar("R")

RETRIES = 2
# Seconds before the first and the second.
RETRY_DELAYS = [1.0, 8.0]
PASSING = {
    *(errno.EAGAIN, errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH),
}


def as_task(
    step: Callable[P, R],
    *,
    name: str,
    run_name: str,
    on_device: bool = False,
    retried: bool = True,
    timeout_seconds: float | None = None,
) -> Task[P, R]:
    """A step as a Prefect task.

    Args:
        step: a plain function.
        name: of the task.
        run_name: of its runs, with the step's parameters in braces.
        on_device: it computes on this machine's device, one such task at a time.
        retried: it is tried again where that may help (see `may_help`).
        timeout_seconds: after which it is given up; None: never.
    """
    again: dict[str, Any] = (
        {"retries": RETRIES, "retry_delay_seconds": RETRY_DELAYS, "retry_condition_fn": _tried_again} if retried else {}
    )
    work = _announced(on_a_device(step) if on_device else step)
    return Task(work, name=name, task_run_name=run_name, timeout_seconds=timeout_seconds, **again)


def _announced(step: Callable[P, R]) -> Callable[P, R]:
    """The same, its run's name first in the log."""

    @wraps(step)
    def run(*args: P.args, **how: P.kwargs) -> R:
        context = TaskRunContext.get()
        if context is not None:
            get_run_logger().info("%s", context.task_run.name)
        return step(*args, **how)

    return run


def _tried_again(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a task is tried again, which is told with its reason."""
    again = may_help(task, run, state)
    if again:
        failure = state.result(raise_on_failure=False)
        task_run_logger(run, task=task).warning("%s; trying again", str(failure) or type(failure).__name__)
    return again


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


class PrefectSink(Sink):
    """Inside a run its logger and artifacts; outside as where nobody set a sink."""

    def logger(self) -> "logging.Logger | LoggerAdapter[Any]":
        try:
            return get_run_logger()
        except MissingContextError:
            return super().logger()

    def begin(self, description: str) -> Callable[[float], bool] | None:
        if not _in_a_run():
            return None
        artifact = create_progress_artifact(0.0, description=description)
        if not isinstance(artifact, UUID):
            return None
        away = False

        def show(percent: float) -> bool:
            """A server that is away is left alone for a while, and the work goes on."""
            nonlocal away
            try:
                with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                    update_progress_artifact(artifact, percent)
            except (TransportError, PrefectHTTPStatusError) as error:
                if not away:
                    message = "the Prefect server shows no progress now (%s); the work goes on"
                    self.logger().warning(message, error)
                away = True
                return False
            return True

        return show

    def link(self, key: str, link: str, description: str) -> None:
        super().link(key, link, description)
        if _in_a_run():
            create_link_artifact(link=link, key=key, description=description)


def _in_a_run() -> bool:
    return TaskRunContext.get() is not None or FlowRunContext.get() is not None


set_sink(PrefectSink())
