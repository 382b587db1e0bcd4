"""Prefect server, MLflow and a worker on loopback, started and ended together."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from urllib.error import URLError
from urllib.request import urlopen

from dataworth.command.terminal import say
from dataworth.serving.deployments import apply_deployments, worker_command
from dataworth.serving.local_server import addresses_of, local_server, shown
from dataworth.storage.errors import DataworthError, InputError
from dataworth.storage.locations import home

__all__ = ["child", "free_port", "mlflow_command", "serve", "wait_for"]

SECONDS_TO_START = 180.0
SECONDS_TO_STOP = 20.0


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _check_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"{option} {port}: not free ({error.strerror}); 0 picks a free one") from None


@contextmanager
def child(command: Sequence[str], environment: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process, in a group of its own, during the block; then ask it to end, and kill it if it does not."""
    process = subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True)
    try:
        yield process
    finally:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, kind)
                process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                process.wait()
                break


def wait_for(process: "subprocess.Popen[bytes]", url: str, what: str) -> None:
    """Wait until a server answers.

    Raises:
        DataworthError: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DataworthError(f"{what} ended at once with exit code {process.returncode}")
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.3)
    raise DataworthError(f"{what} did not answer at {url} within {SECONDS_TO_START:.0f} s")


def mlflow_command(port: int) -> list[str]:
    """The command of an MLflow server on the local database, to which runs write when no server is named."""
    from dataworth.tasks.report.mlflow.database import make_database

    folder = home() / "mlflow"
    make_database(folder / "mlflow.db")
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]


def mlflow_environment(port: int) -> dict[str, str]:
    """Variables that let MLflow answer to its own address alone, not to any name beginning with 10. or 192.168."""
    return {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port},localhost:{port}",
    }


def serve(prefect_port: int | None, mlflow_port: int) -> None:
    """Run both servers and a worker until Ctrl-C.

    Args:
        prefect_port: of loopback; 0 picks a free one, None the usual one if it is free.
        mlflow_port: of loopback; 0 picks a free one.

    Raises:
        InputError: a port is taken.
        DataworthError: a server does not start, or one of the processes ends.
    """
    _check_free(mlflow_port, "--mlflow-port")
    mlflow_port = mlflow_port or free_port()
    mlflow_url = f"http://127.0.0.1:{mlflow_port}"
    with ExitStack() as stack:
        server = stack.enter_context(local_server(prefect_port))
        stack.enter_context(shown())
        mlflow = stack.enter_context(child(mlflow_command(mlflow_port), mlflow_environment(mlflow_port)))
        server.wait()
        wait_for(mlflow, f"{mlflow_url}/health", "the MLflow server")
        addresses = {**addresses_of(server.record), "MLFLOW_TRACKING_URI": mlflow_url}
        apply_deployments(addresses["PREFECT_API_URL"], addresses)
        worker = stack.enter_context(child(worker_command(), addresses))
        page = f"{server.record.url}/deployments?key={server.record.key}"
        say(f"Prefect  {page}\nMLflow   {mlflow_url}/#/experiments")
        say("Commands of this user are seen there by themselves; one of elsewhere uses both after")
        say("\n".join(f"export {name}={value}" for name, value in addresses.items()))
        say("Whoever has the key may run what you may. Ctrl-C ends both.")
        named = {"MLflow": mlflow, "the worker": worker}
        while True:
            for what, process in named.items():
                if process.poll() is not None:
                    raise DataworthError(f"{what} ended with exit code {process.returncode}")
            time.sleep(1.0)
