"""Servers that all processes of the tests share: the first who asks starts one, and it ends after the last."""

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
from filelock import FileLock

from dataworth.serving.servers import free_port

__all__ = ["shared_server"]

SECONDS = 180


def shared_server(name: str, command: Callable[[int], list[str]], page: str, environment: Mapping[str, str]) -> str:
    """Address of a server on loopback.

    Args:
        name: of it; one is started for a name.
        command: by its port.
        page: that answers once it is up.
        environment: of its own beside this process's.
    """
    kept = Path(os.environ["DATAWORTH_TESTS"]) / f"{name}.address"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            port = free_port()
            user = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
            lasting = f"{shlex.join(command(port))} & while kill -0 {user} 2> /dev/null; do sleep 1; done; kill $!"
            beginning = f"setsid bash -c {shlex.quote(lasting)} < /dev/null > /dev/null 2>&1 &"
            subprocess.run(["bash", "-c", beginning], env={**os.environ, **environment}, check=True)
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
            while not _answers(f"{address}{page}"):
                assert time.monotonic() < deadline, f"{name} does not start"
                time.sleep(0.2)
            kept.write_text(address)
    return kept.read_text()


def _answers(page: str) -> bool:
    try:
        return httpx.get(page, timeout=5).is_success
    except httpx.HTTPError:
        return False
