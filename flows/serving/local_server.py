"""The Prefect server of a user's home: one for all commands and `dataworth ui`, begun by the first.

Two servers over one SQLite file lock each other out, and one that a command starts as its child dies with the terminal.
Here whoever needs a server holds a lock that the system frees with its process. The server ends itself some minutes
after nobody holds it any more, so that the next command finds it; and it is begun again by those who need it where it
ended before: its socket stays open meanwhile, so that what is asked waits for an answer.
"""

import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO
from urllib.request import Request, urlopen

from dataworth.command.given import prefect_home
from dataworth.serving.gate import (
    RECORD,
    USERS,
    auth_header,
    auth_string,
    new_key,
    seconds_kept,
    server_command,
    server_environment,
)
from dataworth.storage.durable import make_folder, replace_file
from dataworth.storage.errors import DataworthError, InputError
from dataworth.storage.processes import is_alive

__all__ = ["DEFAULT_PORT", "HERE", "LocalServer", "addresses_of", "has_pages", "local_server", "prefect_api", "shown"]

DEFAULT_PORT = 4200
SECONDS_TO_START = 180.0
SECONDS_TO_STOP = 20.0
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_ANSWER = 60.0
SECONDS_TO_SEND = 10.0
MAX_LOG_BYTES = 10 * 2**20
LOOKS = 50
# Settings that a server reads.
SERVERS = ("PREFECT_SERVER_", "PREFECT_API_DATABASE_", "PREFECT_API_SERVICES_")
# Set where a command uses the server of this home.
HERE = "DATAWORTH_LOCAL_SERVER"
# Servers that this process began and left to others.
_left: "list[subprocess.Popen[bytes]]" = []


@dataclass(frozen=True)
class Record:
    """What those who come later know of a server.

    Args:
        process: its id.
        port: of loopback.
        key: that it asks for.
        settings: a hash of what it was begun with; another server would be begun now where this differs.
    """

    process: int
    port: int
    key: str
    settings: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def is_well(self, seconds: float = SECONDS_TO_ANSWER) -> bool:
        """Whether the server answers within a time, and takes the key."""
        deadline = time.monotonic() + seconds
        while is_alive(self.process):
            try:
                asked = Request(f"{self.url}/api/admin/version", headers={"Authorization": auth_header(self.key)})
                with urlopen(asked, timeout=5):
                    return True
            except OSError as error:
                # Its socket was bound before it was written down: another process has its number now.
                if isinstance(getattr(error, "reason", error), ConnectionRefusedError):
                    return False
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return False


class LocalServer:
    """One user of the server of this home; see `local_server`.

    Args:
        port: that is wanted; None: DEFAULT_PORT where it is free, else another.
        seconds_kept: how long the server may stay after its last user; 0: its last user ends it.
    """

    def __init__(self, port: int | None, seconds_kept: float) -> None:
        self._folder = prefect_home() / "dataworth"
        self._wanted, self._seconds_kept = port, seconds_kept
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="local server", daemon=True)
        make_folder(self._folder)
        for process in _left:
            process.poll()  # which takes the number of one that ended from the table of processes
        self._users = (self._folder / USERS).open("a")
        try:
            with self._starting():
                self._use()
                self.record = self._found() or self._started(self._free_port())
        except BaseException:
            self._users.close()
            raise

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """One at a time."""
        with (self._folder / "start.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _use(self) -> None:
        fcntl.flock(self._users, fcntl.LOCK_SH)
        os.utime(self._users.fileno())

    def _found(self) -> Record | None:
        """The server that others use, or used some minutes ago."""
        try:
            record = Record(**json.loads((self._folder / RECORD).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        if not record.is_well():
            return None
        has_port = self._wanted in (None, 0, record.port)
        if has_port and record.settings == _settings():
            return record
        if self._is_last():  # which keeps a new one from being begun
            self._stop(record.process)
            self._use()
            return None
        self._use()
        if not has_port:
            raise InputError(
                f"--prefect-port {self._wanted}: the runs under way use the server of this home at port {record.port}: "
                "leave the option out, or wait for them to end"
            )
        return record

    def _is_last(self) -> bool:
        """Whether nobody else uses the server; the lock is this one's alone then, else nobody's.

        The server itself looks so, too, a moment each time.
        """
        fcntl.flock(self._users, fcntl.LOCK_UN)
        for _ in range(LOOKS):
            with suppress(BlockingIOError):
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(0.01)
        return False

    def _free_port(self) -> int:
        """Of a socket that is bound and heard already."""
        wanted = DEFAULT_PORT if self._wanted is None else self._wanted
        try:
            self._socket = _listening(wanted)
        except OSError as error:
            if self._wanted is not None:
                raise InputError(f"--prefect-port {wanted}: not free ({error.strerror}); 0 picks a free one") from None
            self._socket = _listening(0)
        return int(self._socket.getsockname()[1])

    def _started(self, port: int, key: str | None = None) -> Record:
        """Begin a server on a port whose socket is held, and wait until it answers."""
        assert self._socket is not None
        key = key or new_key()
        with _log(self._folder) as log:
            self._process = subprocess.Popen(
                server_command(port, self._socket.fileno()),
                env={**os.environ, **server_environment(port, key), "PREFECT_HOME": str(prefect_home())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._socket.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C is not for it
            )
        record = Record(self._process.pid, port, key, _settings())
        replace_file(self._folder / RECORD, json.dumps(vars(record)).encode(), 0o600)
        return record

    def wait(self) -> None:
        """Wait until the server answers.

        Raises:
            DataworthError: it does not.
        """
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                break
            if self.record.is_well(0.0):
                self._watcher.start()
                return
        raise DataworthError(f"the Prefect server of this home did not start: {self._folder / 'server.log'} says why")

    def _watch(self) -> None:
        """Begin it again where it ended."""
        while not self._ended.wait(SECONDS_BETWEEN_LOOKS):
            if self._process is not None:
                self._process.poll()
            if is_alive(self.record.process):
                continue
            with suppress(OSError, InputError), self._starting():
                record = self._found()
                if record is None:
                    if self._socket is None:
                        self._socket = _listening(self.record.port)
                    record = self._started(self.record.port, self.record.key)
                self.record = record

    def close(self) -> None:
        """Stop using the server; the last of its users ends it where it is not to be kept."""
        self._ended.set()
        if self._watcher.is_alive():
            self._watcher.join()
        if not self._seconds_kept:
            with self._starting():
                if self._is_last():
                    self._stop(self.record.process)
        if self._process is not None and self._process.poll() is None:
            _left.append(self._process)
        self._users.close()
        if self._socket is not None:
            self._socket.close()

    def _stop(self, process: int) -> None:
        deadline = time.monotonic() + SECONDS_TO_STOP
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, kind)
            while time.monotonic() < deadline and is_alive(process):
                for own in (*_left, *([self._process] if self._process is not None else [])):
                    own.poll()
                time.sleep(0.05)
            deadline += SECONDS_TO_STOP
        (self._folder / RECORD).unlink(missing_ok=True)


def _settings() -> str:
    """A hash of what a server is made of: versions, the interpreter, Prefect's own settings."""
    versions = [version(name) for name in ("dataworth", "prefect")]
    own = {name: value for name, value in os.environ.items() if name.startswith(SERVERS)}
    profiles = prefect_home() / "profiles.toml"
    kept = profiles.read_bytes() if profiles.is_file() else b""
    told = json.dumps([sys.executable, versions, sorted(own.items())]).encode()
    return hashlib.sha256(told + kept).hexdigest()[:16]


def _listening(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def _log(folder: Path) -> IO[bytes]:
    path = folder / "server.log"
    is_long = path.exists() and path.stat().st_size > MAX_LOG_BYTES
    path.touch(0o600)
    return path.open("wb" if is_long else "ab")


def addresses_of(record: Record) -> dict[str, str]:
    """The environment variables that name a server to Prefect's clients."""
    return {"PREFECT_API_URL": f"{record.url}/api", "PREFECT_API_AUTH_STRING": auth_string(record.key)}


@contextmanager
def local_server(port: int | None = None, seconds_kept: float = 0.0) -> Iterator[LocalServer]:
    """Use the Prefect server of this home while the block lasts; `wait` for it before it is asked anything.

    Args:
        port, seconds_kept: see LocalServer.

    Raises:
        InputError: the port is not free, or the server of this home is at another.
    """
    server = LocalServer(port, seconds_kept)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def prefect_api(prepare: Callable[[], object]) -> Iterator[None]:
    """The Prefect API that is configured, else that of this home while the block lasts.

    Args:
        prepare: what is to be done while a server starts: imports.

    Raises:
        DataworthError: the server of this home does not start.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        yield
        return
    with local_server(seconds_kept=seconds_kept()) as server:
        prepare()
        server.wait()
        variables = {**addresses_of(server.record), HERE: "1"}
        os.environ.update(variables)
        refresh_global_settings_context()
        try:
            yield
        finally:
            _send_the_rest()
            for name in variables:
                os.environ.pop(name, None)
            refresh_global_settings_context()


def _send_the_rest() -> None:
    """Events and lines of the log that wait to be sent."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=SECONDS_TO_SEND, at_exit=False)


@contextmanager
def shown() -> Iterator[None]:
    """While the block lasts, pages of the server of this home open at the address that `dataworth ui` printed."""
    with _ui_lock() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def has_pages() -> bool:
    """Whether links to Prefect's pages work: `dataworth ui` runs, or the server is not that of this home."""
    if HERE not in os.environ:
        return True
    with _ui_lock() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _ui_lock() -> IO[str]:
    folder = prefect_home() / "dataworth"
    make_folder(folder)
    return (folder / "ui.lock").open("a")
