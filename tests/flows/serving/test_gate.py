"""The gate's answers by themselves: hosts, origins, keys, cookies; what Prefect asks for is in tests/system."""

import sys

import pytest
from prefect.settings import temporary_settings
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from dataworth.serving.gate import Gate, auth_string, main, new_key, seconds_kept, server_command, server_environment
from dataworth.storage.errors import InputError

PORT, KEY = 4200, "the-key"
HERE = f"http://127.0.0.1:{PORT}"


async def behind(scope, receive, send):
    if scope["type"] == "websocket":
        websocket = WebSocket(scope, receive, send)
        await websocket.accept()
        await websocket.send_text("behind")
        await websocket.close()
    else:
        await PlainTextResponse("behind")(scope, receive, send)


@pytest.fixture
def client():
    return TestClient(Gate(behind, PORT, auth_string(KEY)), base_url=HERE, follow_redirects=False)


@pytest.mark.parametrize("host", [f"127.0.0.1:{PORT}", f"localhost:{PORT}"])
def test_its_own_names_lead_to_the_api(client, host):
    assert client.get("/api/health", headers={"Host": host}).text == "behind"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:80", "rebound.example:4200", "127.0.0.1:4200.example", "", "[::1]:4200"]
)
@pytest.mark.parametrize("path", ["/api/health", "/deployments", f"/?key={KEY}"])
def test_any_other_name_leads_nowhere(client, host, path):
    answer = client.get(path, headers={"Host": host})
    assert (answer.status_code, answer.text) == (
        421,
        "This server goes by the address that `dataworth ui` printed, and by no other name.",
    )
    assert "set-cookie" not in answer.headers


def test_a_second_name_does_not_count(client):
    assert client.get("/api/health", headers=[("Host", f"127.0.0.1:{PORT}"), ("Host", "other")]).status_code == 421


@pytest.mark.parametrize("origin", ["null", "http://127.0.0.1:1", "https://127.0.0.1:4200", "http://stranger.example"])
def test_pages_of_other_origins_get_no_answer(client, origin):
    for method in ("GET", "POST", "OPTIONS"):
        answer = client.request(method, "/api/flows/", headers={"Origin": origin})
        assert (answer.status_code, answer.text) == (403, "Pages of other addresses may not use this server.")
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", [HERE, "http://localhost:4200"])
def test_its_own_pages_do(client, origin):
    assert client.post("/api/flows/", headers={"Origin": origin}).text == "behind"


@pytest.mark.parametrize("headers", [{"Origin": "http://127.0.0.1:1"}, {"Host": "rebound.example:4200"}])
def test_websockets_are_held_to_the_same(client, headers):
    with client.websocket_connect("/api/events/in", headers={"Host": f"127.0.0.1:{PORT}"}) as socket:
        assert socket.receive_text() == "behind"
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/api/events/in", headers=headers):
        pass
    assert refused.value.code == 1008


def test_pages_are_shown_once_the_key_was_given(client):
    for path in ("/", "/deployments", "/ui-settings", "/apiary", "//api/health"):
        assert client.get(path).status_code == 401
        assert "printed where `dataworth ui` was started" in client.get(path).text
    assert client.get("/deployments?key=").status_code == 403
    wrong = client.get("/deployments?key=the-kez")
    assert wrong.status_code == 403
    assert "set-cookie" not in wrong.headers
    given = client.get(f"/deployments?key={KEY}")
    assert given.status_code == 200
    assert "location.replace(location.pathname)" in given.text
    assert given.headers["cache-control"] == "no-store"
    assert "HttpOnly" in given.headers["set-cookie"]
    assert KEY not in given.headers["set-cookie"]  # every server of this host is sent it
    assert client.get("/deployments").text == "behind"  # by its cookie


def test_a_cookie_of_an_earlier_start_shows_nothing(client):
    client.get(f"/?key={KEY}")
    later = TestClient(Gate(behind, PORT, auth_string("another")), base_url=HERE, cookies=client.cookies)
    assert later.get("/").status_code == 401


def test_no_answer_can_be_framed_nor_asks_others(client):
    for path in ("/", "/api/health", f"/?key={KEY}"):
        assert client.get(path).headers["x-frame-options"] == "DENY"
    policy = f"connect-src {HERE} http://localhost:{PORT}; frame-ancestors 'none'"
    assert client.get("/deployments").headers["content-security-policy"] == policy  # by its cookie


def test_the_key_is_in_no_command():
    key = new_key()
    assert len(key) >= 43
    assert new_key() != key
    assert not any(key in word for word in server_command(PORT, 3))
    environment = server_environment(PORT, key)
    assert environment["PREFECT_SERVER_API_AUTH_STRING"] == f"dataworth:{key}"
    assert environment["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"] == f"{HERE},http://localhost:{PORT}"


def test_no_server_is_started_without_a_key(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gate", str(PORT)])
    with (
        temporary_settings({"server.api.auth_string": None}),
        pytest.raises(InputError, match="PREFECT_SERVER_API_AUTH_STRING: not set"),
    ):
        main()


@pytest.mark.parametrize(("minutes", "seconds"), [("", 300), (" ", 300), ("0", 0), ("0.5", 30), ("90", 5400)])
def test_how_long_a_server_stays(minutes, seconds, monkeypatch):
    monkeypatch.setenv("DATAWORTH_SERVER_MINUTES", minutes)
    assert seconds_kept() == seconds


@pytest.mark.parametrize("minutes", ["soon", "-1", "nan", "inf", "1e9"])
def test_minutes_that_are_none(minutes, monkeypatch):
    monkeypatch.setenv("DATAWORTH_SERVER_MINUTES", minutes)
    with pytest.raises(InputError, match=f"DATAWORTH_SERVER_MINUTES: minutes from 0 to 525,600, not '{minutes}'"):
        seconds_kept()
