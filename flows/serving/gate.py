"""The gate before a home's Prefect server: web pages of somebody else cannot use the server.

Prefect's own server answers pages of every origin and under every name, and what its API is asked for may be any
command. Here a request has to call the server by its own address, so that no other name can be led to it; a page of
another origin is refused; and the API asks for a key made at the start, of websockets, too. No browser sends that key
by itself: the page that the address with the key opens puts it where Prefect's pages keep a password.
"""

import base64
import fcntl
import hashlib
import hmac
import math
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from html import escape

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from dataworth.command.given import prefect_home
from dataworth.storage.errors import InputError

__all__ = [
    "MINUTES",
    "RECORD",
    "USERS",
    "Gate",
    "auth_header",
    "auth_string",
    "main",
    "new_key",
    "seconds_kept",
    "server_command",
    "server_environment",
]

USER = "dataworth"
API = "/api"
# Where Prefect's pages keep a password: under this name, as the header of a request has it.
KEPT_AS = "prefect-password"
WITHOUT = "This page opens with a key. The address that has it was printed where `dataworth ui` was started: open that."
WRONG = "This is not the key of the server that runs now, which made a new one. " + WITHOUT
OTHER_HOST = "This server goes by the address that `dataworth ui` printed, and by no other name."
OTHER_ORIGIN = "Pages of other addresses may not use this server."
POLICY_VIOLATION = 1008
# The file whose lock those who use it share; see dataworth.serving.local_server.
USERS = "users.lock"
# The file that says where it is.
RECORD = "server.json"
# How long the server stays after the last of them, so that the next command need not wait for a start.
MINUTES, MINUTES_BY_DEFAULT, MAX_MINUTES = "DATAWORTH_SERVER_MINUTES", 5.0, 60 * 24 * 365
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_OF_GRACE = 3
SECONDS_TO_END = 15.0


def new_key() -> str:
    """A new random key of 256 bits, whose characters need no escaping in an address, header or script."""
    return secrets.token_urlsafe(32)


def auth_string(key: str) -> str:
    """What Prefect's clients take as PREFECT_API_AUTH_STRING."""
    return f"{USER}:{key}"


def auth_header(key: str) -> str:
    """The Authorization header of a request."""
    return f"Basic {base64.b64encode(auth_string(key).encode()).decode()}"


def server_command(port: int, listening: int) -> list[str]:
    """The command of the server behind its gate; it imports nothing from the folder where it is started.

    Args:
        port: of loopback.
        listening: number of the open file that is its socket.
    """
    return [sys.executable, "-P", "-m", "dataworth.serving.gate", str(port), str(listening)]


def server_environment(port: int, key: str) -> dict[str, str]:
    """Environment variables of the server: the key is here, since everybody on the machine can read a command."""
    return {
        "PREFECT_API_URL": "",
        "PREFECT_SERVER_API_AUTH_STRING": auth_string(key),
        # Its pages ask the first of its names, by whichever they were opened.
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": ",".join(_origins(port)),
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_UI_API_URL": f"{_origins(port)[0]}{API}",
    }


def _origins(port: int) -> list[str]:
    """The addresses it goes by."""
    return [f"http://{name}:{port}" for name in ("127.0.0.1", "localhost")]


class Gate:
    """Lets through what comes from this machine's own programs, and from pages that were opened with the key.

    Args:
        app: of Prefect, which asks for the key wherever its API is used.
        port: of loopback.
        auth: what it asks for.
    """

    def __init__(self, app: ASGIApp, port: int, auth: str):
        self._app, self._auth = app, auth
        self._origins = _origins(port)
        self._hosts = [origin.removeprefix("http://") for origin in self._origins]
        self._key = auth.partition(":")[2]
        # A browser sends its cookies to every port of a host. This one shows pages, and is good for nothing else.
        self._cookie = f"dataworth-{port}"
        self._shown_to = hashlib.sha256(f"pages of {self._key}".encode()).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or one websocket."""
        if scope["type"] not in ("http", "websocket"):  # the server's own start and end
            await self._app(scope, receive, send)
            return
        refused = self._refused(HTTPConnection(scope))
        if refused is None:
            await self._app(scope, receive, _kept_here(send, self._origins))
        elif scope["type"] == "http":
            await refused(scope, receive, _kept_here(send, self._origins))
        else:
            await WebSocketClose(POLICY_VIOLATION)(scope, receive, send)

    def _refused(self, asked: HTTPConnection) -> Response | None:
        """The answer where it is not Prefect's."""
        hosts = asked.headers.getlist("host")
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return PlainTextResponse(OTHER_HOST, 421)
        if any(origin not in self._origins for origin in asked.headers.getlist("origin")):
            return PlainTextResponse(OTHER_ORIGIN, 403)
        path = asked.scope["path"]
        if path == API or path.startswith(f"{API}/"):
            return None
        if "key" in asked.query_params:
            return self._opened() if _same(asked.query_params["key"], self._key) else _page(WRONG, 403)
        return None if _same(asked.cookies.get(self._cookie, ""), self._shown_to) else _page(WITHOUT, 401)

    def _opened(self) -> Response:
        """Gives the key to Prefect's pages, and goes on to the one that was asked for, its address without the key."""
        nonce, kept = secrets.token_urlsafe(16), base64.b64encode(self._auth.encode()).decode()
        script = f'localStorage.setItem("{KEPT_AS}", "{kept}"); location.replace(location.pathname);'
        page = HTMLResponse(f'<!doctype html><title>Prefect</title><script nonce="{nonce}">{script}</script>')
        page.headers.update(_never_kept(f"default-src 'none'; script-src 'nonce-{nonce}'"))
        # Lax: a link in a report, which may be a file, leads to the page it names.
        page.set_cookie(self._cookie, self._shown_to, httponly=True, samesite="lax")
        return page


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())


def _page(sentence: str, status: int) -> Response:
    return HTMLResponse(
        f"<!doctype html><title>dataworth</title><p>{escape(sentence)}", status, _never_kept("default-src 'none'")
    )


def _never_kept(policy: str) -> dict[str, str]:
    return {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "Content-Security-Policy": policy}


def _kept_here(send: Send, origins: Sequence[str]) -> Send:
    """Adds to every answer that no other page may show it inside itself, and that its own scripts ask nobody else.

    Prefect's pages hold the key, and those of its second version report to a service what is seen on them.
    """
    policy = f"connect-src {' '.join(origins)}; frame-ancestors 'none'"

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("Content-Security-Policy", policy)
            headers["X-Frame-Options"] = "DENY"
            headers["X-Content-Type-Options"] = "nosniff"
        await send(message)

    return sent


def seconds_kept() -> float:
    """How long a server stays after the last who used it, as the environment says.

    Raises:
        InputError: it says something else than minutes.
    """
    given = os.environ.get(MINUTES, "")
    try:
        minutes = float(given) if given.strip() else MINUTES_BY_DEFAULT
    except ValueError:
        minutes = math.nan
    if not 0 <= minutes <= MAX_MINUTES:
        raise InputError(f"{MINUTES}: minutes from 0 to {MAX_MINUTES:,}, not {given!r}")
    return 60 * minutes


def _end_unused(seconds: float) -> None:
    """Once nobody has held the lock of those who use it for so long: they may have been killed.

    Whoever takes the lock also touches its file, so that a use shorter than a look counts. A home that was removed is
    nobody's.
    """
    path = prefect_home() / "dataworth" / USERS
    with path.open("a") as users:
        touched, used = 0, time.monotonic()
        while True:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                used = time.monotonic()
                continue
            now = os.fstat(users.fileno())
            if now.st_nlink and now.st_mtime_ns != touched:
                touched, used = now.st_mtime_ns, time.monotonic()
            if now.st_nlink and time.monotonic() < used + seconds:
                fcntl.flock(users, fcntl.LOCK_UN)
                continue
            if now.st_nlink:  # else the home of that name is another
                path.with_name(RECORD).unlink(missing_ok=True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(SECONDS_TO_END)  # whoever comes now waits for the lock, and begins another
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run the server until it is asked to end or nobody uses it; `python -m dataworth.serving.gate PORT LISTENING`.

    Raises:
        InputError: no key is given.
    """
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    settings, port = get_current_settings().server, int(sys.argv[1])
    if settings.api.auth_string is None:
        raise InputError("PREFECT_SERVER_API_AUTH_STRING: not set, and without it the API would ask for no key")
    config = uvicorn.Config(
        Gate(create_app(final=True), port, settings.api.auth_string.get_secret_value()),
        timeout_graceful_shutdown=SECONDS_OF_GRACE,
        timeout_keep_alive=settings.api.keepalive_timeout,
        ws_ping_interval=settings.api.websocket_ping_interval,
        ws_ping_timeout=settings.api.websocket_ping_timeout,
        log_level=settings.logging_level.lower(),
        access_log=False,  # an address may have the key
        proxy_headers=False,
        server_header=False,
    )
    threading.Thread(target=_end_unused, args=(seconds_kept(),), name="users", daemon=True).start()
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[2]))])


if __name__ == "__main__":
    main()
