"""A real Prefect server on loopback for the whole session, and the command line as a process that uses it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.harness.api import migrated_home, shared_prefect_server
from tests.harness.forks import Forked, Forks, forks

SCRIPT = Path(sys.executable).with_name("dataworth")
# Names that lead to loopback, as those that a stranger owns can: one of his own page, one led here later.
STRANGER, REBOUND = "stranger.example", "rebound.example"
CHROMIUM = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-software-rasterizer"),
    f"--host-resolver-rules=MAP {STRANGER} 127.0.0.1,MAP {REBOUND} 127.0.0.1",
)
BROWSER_MILLISECONDS = 60_000


@pytest.fixture(scope="session")
def prefect_server():
    """Address of the API of a Prefect server on SQLite: one for all processes of the tests."""
    return shared_prefect_server()


@pytest.fixture(scope="session", autouse=True)
def _tables():
    """Of the home that commands have here unless a test gives them another."""
    migrated_home(os.environ["PREFECT_HOME"])


@pytest.fixture(scope="session")
def forked() -> Iterator[Forks]:
    """Starts commands without the seconds of their imports."""
    with forks() as found:
        yield found


@pytest.fixture
def dataworth(forked, prefect_server, tmp_path):
    """Runs a command; returns what `subprocess.run` returns, with text."""

    def run(*words, environment=None, timeout=600) -> "subprocess.CompletedProcess[str]":
        there = {**os.environ, "PREFECT_API_URL": prefect_server, **(environment or {})}
        return forked.run([*map(str, words)], there, tmp_path, timeout)

    return run


@pytest.fixture
def script(tmp_path):
    """Runs the console script itself, with no server but the one it starts for itself; returns the same."""

    def run(*words, environment=None, timeout=600) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [SCRIPT, *map(str, words)],
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            check=False,
        )

    return run


@pytest.fixture
def started_dataworth(forked, prefect_server, tmp_path):
    """Starts a command in a session of its own, by its console script where `script` is true.

    Returns the process, the file of its log, and a function that lists the processes of its session, and those it
    started in other sessions, that are still alive after 15 s.
    """
    started = []

    def start(*words, environment=None, script=False):
        log = tmp_path / "started.log"
        there = {**os.environ, "PREFECT_API_URL": prefect_server, "PYTHONUNBUFFERED": "1", **(environment or {})}
        with log.open("wb") as file:
            if script:
                process = _started_script([*map(str, words)], there, tmp_path, file)
            else:
                process = forked.start([*map(str, words)], there, tmp_path, file, file)
        family: set[psutil.Process] = set()
        started.append((process, family))
        watcher = threading.Thread(target=_watch, args=(process, family), daemon=True)
        watcher.start()

        def left() -> list[psutil.Process]:
            watcher.join()
            return _left(process.pid, family)

        return process, log, left

    yield start
    for process, family in started:
        for member in [*family, *_members(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


@pytest.fixture(scope="module")
def browser():
    """A headless chromium, which keeps an event loop of its own in this thread while it lives."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("no chromium: install Debian's package of that name")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM))
        yield started
        started.close()


@pytest.fixture
def page(browser):
    """Of a profile of its own."""
    profile = browser.new_context(viewport={"width": 1400, "height": 1000})
    profile.set_default_timeout(BROWSER_MILLISECONDS)
    yield profile.new_page()
    profile.close()


@pytest.fixture
def screenshot(page, tmp_path):
    """Takes a picture of the page, into $DATAWORTH_SCREENSHOTS, else the test's own folder."""
    folder = Path(os.environ.get("DATAWORTH_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)

    def take(name):
        page.wait_for_timeout(1500)  # for what moves into its place
        page.screenshot(path=folder / f"{name}.png")

    return take


@pytest.fixture
def stopped_dataworth(started_dataworth):
    """Starts a command, sends a signal to its whole group once a line of its log appears, and waits for the end.

    Returns exit code, log, and the processes it left.
    """

    def run(*words, when: str, kind: signal.Signals, script=False) -> tuple[int, str, list[psutil.Process]]:
        process, log, left = started_dataworth(*words, script=script)
        deadline = time.monotonic() + 600
        while when not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert when in log.read_text(), log.read_text()
        os.killpg(process.pid, kind)
        return process.wait(600), log.read_text(), left()

    return run


def _started_script(words: list[str], environment: dict[str, str], folder: Path, log) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [SCRIPT, *words],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=folder,
        # A shell's background job, and all it starts, ignores Ctrl-C; a person's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def _watch(process: "subprocess.Popen[bytes] | Forked", family: set[psutil.Process]) -> None:
    """Note every descendant while the process lives: servers it starts have sessions of their own."""
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            family.update(psutil.Process(process.pid).children(recursive=True))
        time.sleep(0.1)


def _members(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _left(session: int, family: set[psutil.Process]) -> list[psutil.Process]:
    deadline = time.monotonic() + 60
    while True:
        alive = [*_members(session), *(member for member in family if member.is_running())]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.2)
