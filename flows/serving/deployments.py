"""What a Prefect server is told before a worker runs the flows: a work pool, an automation, deployments.

The deployments are those of `prefect.yaml`, which travels with an installed package, too.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from prefect.automations import AutomationCore
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists

from dataworth.storage.errors import DataworthError

__all__ = ["POOL", "apply_deployments", "worker_command"]

POOL = "dataworth"
# A run is asked for parameters alone: by default a form and the API may give a run another command, environment and
# folder. A worker that makes the pool itself takes it as `--base-job-template`.
JOB_TEMPLATE = Path(__file__).with_name("job-template.json")
DEFINITIONS = Path(__file__).with_name("prefect.yaml")
# Heartbeats come every 30 s (flows/__init__.py); several may be lost while a machine is busy.
WITHOUT_HEARTBEAT = timedelta(minutes=5)
LOST = "dataworth: runs without a heartbeat have crashed"


def worker_command() -> list[str]:
    """The command of the worker that carries out runs of the deployments."""
    return [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]


def apply_deployments(api: str, environment: Mapping[str, str]) -> None:
    """Create or update work pool, automation and deployments.

    Args:
        api: address of the Prefect API.
        environment: of the process that applies `prefect.yaml`, and PREFECT_API_AUTH_STRING, if the API asks for one.

    Raises:
        DataworthError: the server does not take the deployments.
    """
    template = json.loads(JOB_TEMPLATE.read_bytes())
    with SyncPrefectClient(api, auth_string=environment.get("PREFECT_API_AUTH_STRING")) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        except ObjectAlreadyExists:
            client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))
        if not client.read_automations_by_name(LOST):
            client.create_automation(_crashed_without_heartbeat())
    deployed = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(DEFINITIONS)],
        env={**os.environ, "DATAWORTH_POOL": POOL, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if deployed.returncode:
        raise DataworthError(f"the deployments were not taken: {(deployed.stderr or deployed.stdout).strip()[-2000:]}")


def _crashed_without_heartbeat() -> AutomationCore:
    """Marks a run as crashed whose machine is gone; see Prefect's documentation, "Detect zombie flows"."""
    return AutomationCore(
        name=LOST,
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={
                "prefect.flow-run.heartbeat",
                "prefect.flow-run.Completed",
                "prefect.flow-run.Skipped",
                "prefect.flow-run.Failed",
                "prefect.flow-run.Cancelled",
                "prefect.flow-run.Crashed",
            },
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=WITHOUT_HEARTBEAT,
        ),
        actions=[
            ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat for 5 minutes: its machine is gone")
        ],
    )
