"""Which errors mean that the Prefect server is away, and what is said then."""

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings

from dataworth.lifecycle.lost_server import is_loss, named_loss
from dataworth.storage.errors import InputError, ServerLostError

ADDRESS = "http://prefect.example:4200/api"


def refused(url):
    return httpx.ConnectError("refused", request=httpx.Request("GET", url))


def turned_away(status, url):
    request = httpx.Request("GET", url)
    return PrefectHTTPStatusError("no", request=request, response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (refused(f"{ADDRESS}/flow_runs"), True),
        (RuntimeError(f"Failed to reach API at {ADDRESS}/"), True),
        (turned_away(503, f"{ADDRESS}/flow_runs"), True),
        (turned_away(404, f"{ADDRESS}/flow_runs"), False),
        (turned_away(503, "https://models.example/llama"), False),
        (refused("https://models.example/llama"), False),
        (httpx.ConnectError("of no request"), False),
        (RuntimeError("something else"), False),
        (None, False),
    ],
)
def test_only_an_unanswered_request_to_the_server_is_its_loss(error, lost):
    with temporary_settings({PREFECT_API_URL: ADDRESS}):
        assert is_loss(error) is lost


def test_a_loss_is_a_sentence_with_the_address():
    with (
        temporary_settings({PREFECT_API_URL: ADDRESS}),
        pytest.raises(ServerLostError, match=f"server at {ADDRESS} does not answer \\(refused\\); what was"),
        named_loss(),
    ):
        raise refused(f"{ADDRESS}/flow_runs")


def test_a_server_that_turns_requests_away_is_a_sentence_too():
    with (
        temporary_settings({PREFECT_API_URL: ADDRESS}),
        pytest.raises(ServerLostError, match="does not answer \\(503 Service Unavailable\\); what was"),
        named_loss(),
    ):
        raise turned_away(503, f"{ADDRESS}/flow_runs")


def test_a_server_that_wants_a_password_is_a_sentence_that_says_where_it_is():
    with (
        temporary_settings({PREFECT_API_URL: ADDRESS}),
        pytest.raises(
            InputError, match="does not take the password: set PREFECT_API_AUTH_STRING, which `dataworth ui`"
        ),
        named_loss(),
    ):
        raise turned_away(401, f"{ADDRESS}/flow_runs")


def test_another_server_that_wants_one_is_not_the_prefect_server():
    with temporary_settings({PREFECT_API_URL: ADDRESS}), pytest.raises(PrefectHTTPStatusError), named_loss():
        raise turned_away(401, "https://models.example/llama")


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="something else"), named_loss():
        raise RuntimeError("something else")


def _interrupted():
    """As Prefect does, which tells its server of an interrupt before it goes on."""
    try:
        raise KeyboardInterrupt
    finally:
        raise refused(f"{ADDRESS}/flow_runs")


def test_a_loss_while_interrupted_is_the_interrupt():
    with temporary_settings({PREFECT_API_URL: ADDRESS}), pytest.raises(KeyboardInterrupt), named_loss():
        _interrupted()
