"""Errors of a Prefect server that went away or wants a password, as one sentence that names its address."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import httpx
from prefect.settings import PREFECT_API_URL

from dataworth.serving.local_server import HERE
from dataworth.storage.errors import InputError, ServerLostError
from dataworth.tasks.visible import without_password

__all__ = ["is_loss", "loss", "loss_reason", "named_loss", "server_address"]

# What Prefect's client says where nobody answers the first request.
UNREACHED = "Failed to reach API at"
# What a gateway says of a server that is away, and the server itself while its database is locked.
UNAVAILABLE = (502, 503, 504)


def server_address() -> str:
    """The address of the Prefect API, without any password in it."""
    return without_password(PREFECT_API_URL.value() or "the embedded server's address")


def is_loss(error: BaseException | None) -> TypeGuard[BaseException]:
    """Whether an error means that the Prefect server is away, even after all of Prefect's own retries."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(UNREACHED)
    if isinstance(error, httpx.HTTPStatusError):
        if error.response.status_code not in UNAVAILABLE:
            return False
    elif not isinstance(error, httpx.TransportError):
        return False
    return _is_of_server(error)


def _is_of_server(error: httpx.HTTPStatusError | httpx.TransportError) -> bool:
    """Raised by a request to the Prefect API."""
    try:
        asked = str(error.request.url)
    except RuntimeError:  # raised by no request
        return False
    return asked.startswith(PREFECT_API_URL.value() or "http://127.0.0.1")


def _wants_password(error: BaseException) -> bool:
    """The Prefect server did not take what it was given, or was given nothing."""
    if not isinstance(error, httpx.HTTPStatusError):
        return False
    return error.response.status_code == httpx.codes.UNAUTHORIZED and _is_of_server(error)


def loss(error: BaseException) -> ServerLostError:
    """The error to raise, with a sentence for the user, in place of one that `is_loss`."""
    again = "the same command" if HERE in os.environ else "once the server is back the same command"
    return ServerLostError(
        f"the Prefect server at {server_address()} does not answer ({loss_reason(error)}); "
        f"what was finished is kept, and {again} goes on from there"
    )


def loss_reason(error: BaseException) -> str:
    """The reason of an error that `is_loss`, in a few words."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"{error.response.status_code} {error.response.reason_phrase}"
    return str(error) or type(error).__name__


@contextmanager
def named_loss() -> Iterator[None]:
    """Run flows in the block; if the Prefect server is lost meanwhile, the error is one sentence.

    Raises:
        InputError: the Prefect server wants a password.
        ServerLostError: the Prefect server went away in the block.
        KeyboardInterrupt: it did because the block was interrupted, which ends an embedded server, too.
    """
    try:
        yield
    except (httpx.TransportError, httpx.HTTPStatusError, RuntimeError) as error:
        if _wants_password(error):
            raise InputError(
                f"the Prefect server at {server_address()} does not take the password: set PREFECT_API_AUTH_STRING, "
                "which `dataworth ui` prints where it was started"
            ) from error
        if not is_loss(error):
            raise
        if _while_interrupted(error):
            raise KeyboardInterrupt from error
        raise loss(error) from error


def _while_interrupted(error: BaseException | None) -> bool:
    """An interrupt was being handled when the error, or what it came of, was raised."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
