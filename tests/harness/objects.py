"""An S3 server on loopback: a process of its own, which forgets everything when it ends."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from urllib.request import Request, urlopen

from dataworth.serving.servers import child, free_port, wait_for
from tests.harness.lasting import shared_server

__all__ = ["SECRET", "environment", "new_bucket", "object_server", "refusing", "shared_object_server"]

SECRET = "never-to-be-seen"
_NUMBERS = count()


@contextmanager
def object_server() -> Iterator[str]:
    """Address of a server that ends with the block."""
    port = free_port()
    with child(_server(port), {}) as process:
        wait_for(process, f"http://127.0.0.1:{port}/moto-api/", "the S3 server")
        yield f"http://127.0.0.1:{port}"


def shared_object_server() -> str:
    """Address of a server for all processes of the tests, which forgets nothing before they end."""
    return shared_server("S3", _server, "/moto-api/", {})


def _server(port: int) -> list[str]:
    return [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]


def environment(address: str) -> dict[str, str]:
    """What a client finds the server with."""
    return {
        "AWS_ACCESS_KEY_ID": f"id-{SECRET}",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
    }


def new_bucket(address: str) -> str:
    """Name of an empty bucket."""
    name = f"bucket-{os.getpid()}-{next(_NUMBERS)}"
    _ask(f"{address}/{name}", "PUT", b"")
    return name


@contextmanager
def refusing(address: str) -> Iterator[None]:
    """While the block lasts the server knows nobody's key."""
    _ask(f"{address}/moto-api/reset-auth", "POST", b"0")
    try:
        yield
    finally:
        _ask(f"{address}/moto-api/reset-auth", "POST", b"inf")


def _ask(url: str, method: str, content: bytes) -> None:
    with urlopen(Request(url, content, {"Content-Type": "text/plain"}, method=method), timeout=20):
        pass
