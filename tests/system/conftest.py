"""A real Prefect server on loopback for the whole session, and the command line as a process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.servers import child, free_port, wait_for


@pytest.fixture(scope="session")
def prefect_server():
    """Address of the API of a Prefect server on SQLite."""
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with child(command, {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "true"}) as process:
        wait_for(process, f"http://127.0.0.1:{port}/api/health", "the Prefect server")
        yield f"http://127.0.0.1:{port}/api"


@pytest.fixture
def dataworth(prefect_server, tmp_path):
    """Runs a command; returns what `subprocess.run` returns, with text."""

    def run(*words, environment=None, timeout=300) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [Path(sys.executable).with_name("dataworth"), *map(str, words)],
            env={**os.environ, "PREFECT_API_URL": prefect_server, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            check=False,
        )

    return run


@pytest.fixture
def stopped_dataworth(prefect_server, tmp_path):
    """Starts a command, sends a signal to its whole group once a line of its log appears, and waits for the end.

    Returns exit code, log, and the processes of its session that are still alive 15 s after.
    """

    def run(*words, when: str, kind: signal.Signals) -> tuple[int, str, list[psutil.Process]]:
        log = tmp_path / "stopped.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [Path(sys.executable).with_name("dataworth"), *map(str, words)],
                env={**os.environ, "PREFECT_API_URL": prefect_server, "PYTHONUNBUFFERED": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=tmp_path,
            )
        deadline = time.monotonic() + 120
        while when not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert when in log.read_text(), log.read_text()
        os.killpg(process.pid, kind)
        code = process.wait(60)
        return code, log.read_text(), _left(process.pid)

    return run


def _left(session: int) -> list[psutil.Process]:
    def alive() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    deadline = time.monotonic() + 15
    while alive() and time.monotonic() < deadline:
        time.sleep(0.2)
    return alive()
