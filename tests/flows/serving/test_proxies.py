"""What is on this machine is asked for directly, by every library; what is elsewhere through the proxy that is set."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import build_opener

import httpx
import pytest
import requests
from websockets.proxy import get_proxy
from websockets.uri import parse_uri

from dataworth.command import doctor
from dataworth.serving.proxies import LOOPBACK, proxies, spare_loopback

ROOT = Path(__file__).parents[3]
EVERY = ",".join(LOOPBACK)
NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Answer(BaseHTTPRequestHandler):
    """Notes whom it was asked for."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server on loopback, and an environment without proxies."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with HTTPServer(("127.0.0.1", 0), Answer) as found:
        found.asked = []
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def by_requests(address):
    with requests.get(address, timeout=60) as answer:
        answer.raise_for_status()


def by_urllib(address):
    with build_opener().open(address, timeout=60):  # urlopen reads the environment once only
        pass


CLIENTS = {
    "httpx": lambda address: httpx.get(address, timeout=60).raise_for_status(),
    "requests": by_requests,
    "urllib": by_urllib,
}


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_that_does_not_answer_does_no_harm_on_loopback(server, monkeypatch, name, client, host):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    spare_loopback()
    CLIENTS[client](f"http://{host}:{server.server_port}/x")
    assert server.asked == ["/x"]


@pytest.mark.parametrize("client", CLIENTS)
def test_what_is_elsewhere_keeps_the_proxy(server, monkeypatch, client):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    spare_loopback()
    CLIENTS[client]("http://elsewhere.example/x")
    assert server.asked == ["http://elsewhere.example/x"]


def test_web_sockets_know_it_too(server, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert get_proxy(parse_uri("ws://127.0.0.1:4200/api")) == "http://127.0.0.1:9"
    spare_loopback()
    assert [get_proxy(parse_uri(f"ws://{host}:4200/api")) for host in ("127.0.0.1", "localhost", "[::1]")] == [None] * 3
    assert get_proxy(parse_uri("ws://elsewhere.example:4200/api")) == "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("given", "lower", "upper"),
    [
        ({}, EVERY, EVERY),
        ({"NO_PROXY": "x.example, ,y"}, f"x.example,y,{EVERY}", f"x.example,y,{EVERY}"),
        ({"no_proxy": "x"}, f"x,{EVERY}", f"x,{EVERY}"),
        ({"no_proxy": "x", "NO_PROXY": "y"}, f"x,{EVERY}", f"y,{EVERY}"),
        ({"no_proxy": "::1"}, "::1,localhost,127.0.0.1,127.0.0.0/8", "::1,localhost,127.0.0.1,127.0.0.0/8"),
        ({"PREFECT_API_URL": "http://127.0.0.5:4200/api"}, f"{EVERY},127.0.0.5", f"{EVERY},127.0.0.5"),
        ({"MLFLOW_TRACKING_URI": "http://10.0.0.5:5000"}, EVERY, EVERY),
        ({"AWS_ENDPOINT_URL": "http://[x"}, EVERY, EVERY),
    ],
)
def test_what_is_there_stays(given, lower, upper):
    environment = {"HTTPS_PROXY": "http://proxy.example", **given}
    spare_loopback(environment)
    assert (environment["no_proxy"], environment["NO_PROXY"]) == (lower, upper)
    again = dict(environment)
    spare_loopback(again)
    assert again == environment


def test_without_a_proxy_nothing_is_set():
    for environment in ({}, {"http_proxy": ""}, {"NO_PROXY": "x"}):
        before = dict(environment)
        spare_loopback(environment)
        assert environment == before
        assert proxies(environment) == {}


def test_it_is_done_before_any_library_is_imported_and_inherited():
    program = (
        "import flows, sys, subprocess; assert not {'prefect', 'httpx', 'requests', 'websockets'} & set(sys.modules);"
        "subprocess.run([sys.executable, '-c', 'import os; print(os.environ[\"no_proxy\"])'], check=True)"
    )
    environment = {name: value for name, value in os.environ.items() if name.lower() not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "ALL_PROXY": "http://127.0.0.1:9"}, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == EVERY


def test_the_doctor_names_the_proxy_and_asks_servers_as_a_run_does(server, monkeypatch):
    assert doctor._proxy().found == "none"
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://10.255.255.1:5000")  # through the proxy, which nobody is
    spare_loopback()
    found = {check.what: check for check in doctor.checks()}
    assert found["proxy"].found == f"http_proxy=http://…@127.0.0.1:9, not for {EVERY}"
    assert found["Prefect"].ok
    assert server.asked == ["/api/health", "/api/admin/version"]
    assert not found["MLflow"].ok
