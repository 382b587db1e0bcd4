"""The command line in processes forked from one that has imported everything, so that its seconds are paid once.

Each is a process of its own, in a session of its own, with its environment, folder, output and signals, and runs
`dataworth.command.cli.main` to the end of an interpreter. What differs from the console script is only when modules
were imported: tests whose subject that is start the script itself.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NoReturn

from dataworth.command.imports import many_imports
from dataworth.command.terminal import CONSOLE, HANDLER

__all__ = ["Forked", "Forks", "forks"]

ROOT = Path(__file__).parents[2]
LONGEST_REQUEST = 2**20
FLOWS = (
    "dataworth.audit_valuation",
    "dataworth.demo",
    "dataworth.search",
    "dataworth.value_corpus",
    "dataworth.tasks.report.mlflow.tracking",
)
# What libraries import only once they have a database to open, a page to serve, a flow to run.
LATE = (
    *("distributed.dashboard.scheduler", "distributed.http.scheduler.info", "prefect.flow_engine"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.system_metrics.system_metrics_monitor"),
    *("prefect.task_engine", "prefect.utilities.visualization", "pyarrow.dataset"),
)


class Forked:
    """A process as subprocess.Popen has it."""

    def __init__(self, told: int) -> None:
        self._told = told
        self._asking = threading.Lock()
        self.pid = int(self._line())
        self.returncode: int | None = None

    def _line(self) -> str:
        found = b""
        while not found.endswith(b"\n"):
            byte = os.read(self._told, 1)
            if not byte:
                raise ChildProcessError("the process that forks has ended")
            found += byte
        return found.decode()

    def _ended(self, seconds: float) -> bool:
        if self.returncode is None:
            select.select([self._told], [], [], seconds)
        with self._asking:
            if self.returncode is None and select.select([self._told], [], [], 0.0)[0]:
                self.returncode = int(self._line())
        return self.returncode is not None

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        self._ended(0.0)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit code.

        Raises:
            TimeoutExpired: it runs on.
        """
        if not self._ended(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, kind: int) -> None:
        """To the process alone, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, kind)

    def __del__(self) -> None:
        os.close(self._told)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Make it end."""
        self.send_signal(signal.SIGKILL)


class Forks:
    """Starts commands; see `forks`."""

    def __init__(self, asked: socket.socket) -> None:
        self._asked = asked

    def start(
        self, words: Sequence[str], environment: Mapping[str, str], folder: Path, output: IO[Any], errors: IO[Any]
    ) -> Forked:
        """A command, whose output goes to files."""
        told, tell = os.pipe()
        request = json.dumps({"words": list(words), "environment": dict(environment), "folder": str(folder)})
        socket.send_fds(self._asked, [request.encode()], [output.fileno(), errors.fileno(), tell])
        os.close(tell)
        return Forked(told)

    def run(
        self, words: Sequence[str], environment: Mapping[str, str], folder: Path, timeout: float
    ) -> "subprocess.CompletedProcess[str]":
        """What subprocess.run returns, with text.

        Raises:
            TimeoutExpired: it did not end; it and its session are killed.
        """
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            process = self.start(words, environment, folder, output, errors)
            try:
                process.wait(timeout)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
            said = []
            for file in (output, errors):
                file.seek(0)
                said.append(file.read())
        return subprocess.CompletedProcess(list(words), process.wait(0), *said)


@contextlib.contextmanager
def forks() -> Iterator[Forks]:
    """The process that has imported everything, for the time of the block."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST_REQUEST)
    command = [sys.executable, "-m", "tests.harness.forks", str(theirs.fileno())]
    # What a command sets before it imports Prefect, which is imported here before any command.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", HANDLER: CONSOLE}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
    )
    theirs.close()
    try:
        yield Forks(ours)
    finally:
        ours.close()
        process.wait(10)


def _serve(asked: socket.socket) -> None:
    """Fork for every request until nobody can ask any more."""
    _import_all()
    guardians: set[int] = set()
    while True:
        request, fds, _, _ = socket.recv_fds(asked, LONGEST_REQUEST, 3)
        if not request:
            return
        guardian = os.fork()
        if guardian == 0:
            asked.close()
            _guard(json.loads(request), *fds)
        for fd in fds:
            os.close(fd)
        guardians.add(guardian)
        guardians -= {ended for ended in guardians if os.waitpid(ended, os.WNOHANG)[0]}


def _import_all() -> None:
    with many_imports():
        for name in (*FLOWS, *LATE):
            import_module(name)
        import_module("sqlalchemy.orm").configure_mappers()
    if threading.active_count() > 1:
        raise RuntimeError(f"an import started threads, which a fork would lose: {threading.enumerate()}")


def _guard(request: dict[str, Any], output: int, errors: int, tell: int) -> NoReturn:
    """Tell the number of the command's process, then its exit code."""
    child = os.fork()
    if child == 0:
        os.close(tell)
        os.setsid()
        for given, own in ((output, 1), (errors, 2)):
            os.dup2(given, own)
            os.close(given)
        _run(request)
    os.close(output)
    os.close(errors)
    os.write(tell, f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    os.write(tell, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _run(request: dict[str, Any]) -> NoReturn:
    """The command line, as its console script runs it."""
    import torch
    from prefect.context import refresh_global_settings_context

    from dataworth import ENVIRONMENT
    from dataworth.command.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update({**ENVIRONMENT, **request["environment"]})
    os.chdir(request["folder"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    refresh_global_settings_context()
    sys.argv = ["dataworth", *request["words"]]
    sys.modules["__main__"].__package__ = None  # as in a script, whose name click then tells
    main()
    sys.exit(0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
