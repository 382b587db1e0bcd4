"""Cancelling from the UI or the API ends a run within seconds, whoever started it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled

from dataworth.lifecycle.interrupts import forget_interrupt
from dataworth.lifecycle.lost_server import is_loss, loss_reason, server_address
from dataworth.tasks.progress import run_logger

__all__ = ["unless_cancelled"]

T = TypeVar("T")

SECONDS_BETWEEN_LOOKS = 3.0
AWAY = "the Prefect server at %s does not answer (%s): the step under way goes on, and the run if the server comes back"
MESSAGE = "cancelled; what was finished is kept, the next run goes on from there"
LATE = "cancelled when all its work was done, which is kept"


def unless_cancelled(work: Callable[[], T]) -> T | State[Any]:
    """Do some work and return what it returns; if its run is cancelled meanwhile, return the state Cancelled.

    A worker ends a run that it started with SIGTERM, and says that it is cancelled only after another process has
    imported the flow in search of hooks: 10 to 20 seconds later. So the run says it itself, and for its subflows.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None:
        return work()
    with _watched(run) as asked:
        try:
            done = work()
            # Left to itself, a run that ends now would be Cancelling for good.
            return Cancelled(message=LATE) if _is_cancelling(run) else done
        except KeyboardInterrupt:
            if not asked.is_set():
                raise
            forget_interrupt()
            return Cancelled(message=MESSAGE)
        except TerminationSignal:
            _say_cancelled(run)
            raise


def _is_cancelling(run: FlowRun) -> bool:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run.id).state
    return state is not None and state.type == StateType.CANCELLING


def _say_cancelled(run: FlowRun) -> None:
    """Where it was cancelled, and not its worker ended."""
    if not _is_cancelling(run):
        return
    with get_client(sync_client=True) as client:
        running = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
        of_run = FlowRunFilterParentFlowRunId(any_=[run.id])
        subflows = client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id=of_run, state=running))
        for each in (*subflows, run):
            cancelled: State[Any] = Cancelled(message=MESSAGE)
            client.set_flow_run_state(each.id, cancelled, force=True)


@contextmanager
def _watched(run: FlowRun) -> Iterator[threading.Event]:
    """Interrupt the block when its run is cancelled, where no worker does: runs started from the command line.

    Yields an event that is set then.
    """
    asked, ended = threading.Event(), threading.Event()
    if run.deployment_id is not None or run.parent_task_run_id is not None:
        yield asked
        return

    logger = run_logger()

    def look() -> None:
        away = False
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
            while not ended.wait(SECONDS_BETWEEN_LOOKS):
                try:
                    state = client.read_flow_run(run.id).state
                except Exception as error:  # a server that is away for a moment is asked again
                    if is_loss(error) and not away:
                        away = True
                        logger.warning(AWAY, server_address(), loss_reason(error))
                    continue
                if away:
                    away = False
                    logger.warning("the Prefect server at %s answers again", server_address())
                if state is not None and state.type == StateType.CANCELLING and not ended.is_set():
                    asked.set()
                    os.kill(os.getpid(), signal.SIGINT)
                    return

    threading.Thread(target=look, name="cancelling", daemon=True).start()
    try:
        yield asked
    finally:
        ended.set()
