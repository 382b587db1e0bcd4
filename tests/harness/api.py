"""What tests ask a Prefect server, that of `dataworth ui` among them, and how they wait."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from filelock import FileLock

from dataworth.serving.servers import child, free_port, wait_for
from tests.harness.lasting import shared_server

__all__ = [
    "SECONDS",
    "Api",
    "Served",
    "migrated_home",
    "prefect_server_process",
    "served",
    "shared_prefect_server",
    "wait_until",
]


# How long tests wait for what is to come: far beyond what a slow and busy machine needs.
SECONDS = 600


def wait_until(condition, what, seconds=SECONDS):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(what)


@dataclass(frozen=True)
class Served:
    """What `dataworth ui` prints: addresses without a path, and the key."""

    prefect: str
    key: str
    mlflow: str

    def page(self, path):
        """A page of the Prefect server, as a browser opens it that has not been there."""
        return f"{self.prefect}{path}?key={self.key}"

    @property
    def environment(self):
        """Of another command that uses both servers."""
        return {
            "PREFECT_API_URL": f"{self.prefect}/api",
            "PREFECT_API_AUTH_STRING": f"dataworth:{self.key}",
            "MLFLOW_TRACKING_URI": self.mlflow,
        }

    @property
    def api(self):
        return Api(f"{self.prefect}/api", ("dataworth", self.key))


def served(process, log):
    """What a started `dataworth ui` has printed, once it is up."""
    wait_until(lambda: "Ctrl-C ends both" in log.read_text() or process.poll() is not None, "no servers")
    found = re.search(r"Prefect  (\S+)/deployments\?key=(\S+)\nMLflow   (\S+)/#/experiments", log.read_text())
    assert found, log.read_text()
    ui = Served(*found.groups())
    assert all(f"export {name}={value}\n" in log.read_text() for name, value in ui.environment.items())
    return ui


class Api:
    """Of a Prefect server, which answers 503 while another process writes to SQLite.

    Args:
        address: of the API.
        auth: user and password, where it wants them; it then wants a token with whatever changes something, too.
    """

    def __init__(self, address, auth=None):
        self.address, self._auth, self._headers = address, auth, {}
        if auth is not None:
            token = self._asked("GET", "/csrf-token?client=tests")["token"]
            self._headers = {"Prefect-Csrf-Client": "tests", "Prefect-Csrf-Token": token}

    def answer(self, method, path, content=None):
        """Whatever it is."""

        def answered():
            answer = httpx.request(
                method, f"{self.address}{path}", json=content, timeout=SECONDS, auth=self._auth, headers=self._headers
            )
            return None if answer.status_code == 503 else answer

        return wait_until(answered, "the server is busy all the time")

    def _asked(self, method, path, content=None):
        answer = self.answer(method, path, content)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def deployments(self):
        return self._asked("POST", "/deployments/filter", {})

    def take(self, deployment, config):
        """Give a deployment its parameters."""
        self._asked("PATCH", f"/deployments/{deployment}", {"parameters": {"config": config}})

    def deployment(self, flow):
        return self._asked("GET", f"/deployments/name/{flow}/dataworth")

    def start(self, flow, config):
        path = f"/deployments/{self.deployment(flow)['id']}/create_flow_run"
        return self._asked("POST", path, {"parameters": {"config": config}, "state": {"type": "SCHEDULED"}})

    def run(self, run_id):
        return self._asked("GET", f"/flow_runs/{run_id}")

    def runs(self, **conditions):
        return self._asked("POST", "/flow_runs/filter", {"sort": "START_TIME_ASC", **conditions})

    def going_on(self):
        """The runs that have not ended, those among them that have yet to begin."""
        states = {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]}}
        return self.runs(flow_runs={"state": states})

    def running(self, process):
        """The run that the server takes for running in a process."""
        states = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
        (run,) = [run for run in self.runs(**states) if run["labels"].get("dataworth.process") == process.pid]
        return run

    def ended(self, run_id):
        state = self.run(run_id)["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    def log(self, run_id):
        found = self._asked("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 200})
        return "\n".join(line["message"] for line in found)

    def subflows(self, run_id):
        return self.runs(flow_runs={"parent_flow_run_id": {"any_": [run_id]}})

    def task_states(self, run_id):
        """Of each of a run's tasks, the type of its state."""
        found = self._asked("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
        return {each["id"]: each["state"]["type"] for each in found}

    def log_of_all(self, run_id):
        """Of a run and its subflows."""
        return "\n".join(self.log(name) for name in [run_id, *(run["id"] for run in self.subflows(run_id))])

    def set_state(self, run_id, kind):
        self._asked("POST", f"/flow_runs/{run_id}/set_state", {"state": {"type": kind}})

    def schedule(self, flow, seconds, config):
        path = f"/deployments/{self.deployment(flow)['id']}/schedules"
        every = {"interval": seconds, "anchor_date": "2026-01-01T00:00:00Z"}
        content = {"schedule": every, "active": True, "parameters": {"config": config}}
        return path, self._asked("POST", path, [content])[0]["id"]

    def unschedule(self, path, schedule):
        """Runs that are late already would still begin: they are cancelled."""
        self._asked("DELETE", f"{path}/{schedule}")
        for run in self.runs(flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}}):
            self.set_state(run["id"], "CANCELLED")


def _server(port: int) -> list[str]:
    return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]


QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "true"}


def migrated_home(folder: object) -> str:
    """A home of Prefect's whose tables are there already: making them takes a processor six seconds, each time anew."""
    shared, home = Path(os.environ["DATAWORTH_TESTS"]), Path(str(folder))
    database = shared / "prefect.db"
    with FileLock(shared / "prefect.lock"):
        if not database.exists():
            upgrade = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
            environment = {**os.environ, **QUIET, "PREFECT_HOME": str(shared / "first")}
            subprocess.run(upgrade, env=environment, check=True, capture_output=True)
            shutil.move(shared / "first" / "prefect.db", database)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (home / "prefect.db").exists():
        shutil.copy(database, home)
    return str(home)


@contextmanager
def prefect_server_process(home: object = None, port: int | None = None) -> Iterator[tuple[object, str]]:
    """A Prefect server on SQLite while the block lasts: its process, and the address of its API."""
    port = port or free_port()
    with child(_server(port), QUIET if home is None else {**QUIET, "PREFECT_HOME": migrated_home(home)}) as process:
        wait_for(process, f"http://127.0.0.1:{port}/api/health", "the Prefect server")
        yield process, f"http://127.0.0.1:{port}/api"


def shared_prefect_server() -> str:
    """The address of the API of a Prefect server on SQLite that all processes of the tests use."""
    home = migrated_home(f"{os.environ['DATAWORTH_TESTS']}/prefect")
    return f"{shared_server('Prefect', _server, '/api/health', {**QUIET, 'PREFECT_HOME': home})}/api"
