"""What every run of a flow does at its start: a name, tags and labels, and a look for runs that died unnoticed."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentTaskRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed

from dataworth.command.terminal import sentences_for_known_errors
from dataworth.config import CorpusRunConfig, run_title
from dataworth.serving.embedded import close_embedded_server
from dataworth.storage.processes import is_alive, process_space
from dataworth.storage.spelling import as_field, spell
from dataworth.tasks.progress import run_logger

__all__ = ["announce", "run_name"]

# Before any flow begins, and with it such a server.
close_embedded_server()

FLOWS = ["audit-valuation", "value-corpus", "index-corpus", "fit-curvature", "demo"]
NODE, SPACE, PROCESS = "dataworth.node", "dataworth.processes", "dataworth.process"


def run_name() -> str:
    """The name of the flow run that begins."""
    config = flow_run.parameters.get("config")
    if isinstance(config, CorpusRunConfig):
        config = config.model_dump()
    try:
        name = config["model"]["name"]
        return run_title([name] if isinstance(name, str) else name, config["corpus"]["files"])
    except (KeyError, TypeError):
        return str(flow_run.flow_name)


def announce(config: CorpusRunConfig | None = None) -> None:
    """Label the run under way with its process and its models, and mark runs of this machine that are dead."""
    sentences_for_known_errors()
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    run = context.flow_run
    if run.deployment_id is not None:
        spell(as_field)  # its parameters come from a form
    with get_client(sync_client=True) as client:
        labels: dict[str, bool | int | float | str] = {
            NODE: platform.node(),
            SPACE: process_space() or "",
            PROCESS: os.getpid(),
        }
        client.update_flow_run_labels(run.id, labels)
        tags = {"dataworth", *(f"model:{Path(name).name}" for name in (config.model.name if config else []))}
        client.update_flow_run(run.id, tags=sorted({*run.tags, *tags}))
        if run.parent_task_run_id is None:
            _mark_dead_runs(client)
        else:
            _mark_twins(client, run)


def _mark_dead_runs(client: SyncPrefectClient) -> None:
    """Runs that the server takes for alive, and whose process on this machine is gone."""
    alive = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING])
    runs = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=FLOWS)),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=alive)),
    )
    for run in runs:
        if not _is_dead(run.labels):
            continue
        message = f"its process {run.labels[PROCESS]} on {run.labels[NODE]} is gone"
        cancelling = run.state is not None and run.state.type == StateType.CANCELLING
        state: State[Any] = Cancelled(message=message) if cancelling else Crashed(message=message)
        client.set_flow_run_state(run.id, state, force=True)
        _end_tasks(client, run, state)
        run_logger().warning("run %s (%s) is marked %s: %s", repr(run.name), run.id, state.name, message)


def _mark_twins(client: SyncPrefectClient, run: FlowRun) -> None:
    """Runs that the server made for the same call of a flow: asked by a client that did not wait for its answer."""
    same = FlowRunFilterParentTaskRunId(any_=[run.parent_task_run_id])
    pending = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING]))
    for twin in client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_task_run_id=same, state=pending)):
        if twin.id != run.id:
            client.set_flow_run_state(twin.id, Crashed(message=f"asked for twice: it runs as {run.id}"), force=True)


def _end_tasks(client: SyncPrefectClient, run: FlowRun, state: State[Any]) -> None:
    """With a dead run: so they free their places on devices, which the server would keep for them for a minute."""
    running = TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING]))
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    for task_run in client.read_task_runs(flow_run_filter=of_run, task_run_filter=TaskRunFilter(state=running)):
        client.set_task_run_state(task_run.id, state, force=True)


def _is_dead(labels: Mapping[str, Any]) -> bool:
    """Its process ran in this space of processes and does no longer, or before this machine was started again."""
    space, process = process_space(), labels.get(PROCESS)
    if not isinstance(process, int) or not space or not labels.get(SPACE) or labels.get(NODE) != platform.node():
        return False
    if labels[SPACE] == space:
        return not is_alive(process)
    return _boot(str(labels[SPACE])) != _boot(space)


def _boot(space: str) -> str:
    return space.split()[-2]
