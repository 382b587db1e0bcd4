"""The server that a run starts for itself: a key in this process' settings of Prefect, and nowhere else."""

import os

import prefect.context
import pytest
from prefect.context import SettingsContext
from prefect.settings import get_current_settings

from dataworth.serving.embedded import close_embedded_server


@pytest.fixture
def settings(monkeypatch):
    """Makes Prefect's settings those that an environment gives, and takes them back."""

    def begin(**updates):
        context = prefect.context.GLOBAL_SETTINGS_CONTEXT
        none = {"api.url": None, "api.auth_string": None, "server.api.auth_string": None}
        changed = context.settings.copy_with_update(updates={**none, **updates})
        fresh = SettingsContext(profile=context.profile, settings=changed)
        monkeypatch.setattr(prefect.context, "GLOBAL_SETTINGS_CONTEXT", fresh)

    return begin


def keys():
    found = get_current_settings()
    return [each and each.get_secret_value() for each in (found.api.auth_string, found.server.api.auth_string)]


def test_server_and_clients_have_the_same_key_and_no_other_process_has_it(settings):
    settings()
    close_embedded_server()
    client, server = keys()
    assert client == server
    assert len(client) >= len("dataworth:") + 43
    assert client not in os.environ.values()
    close_embedded_server()
    assert keys() == [client, server]
    settings()
    close_embedded_server()
    assert keys() != [client, server]


def test_the_server_is_started_with_it(settings):
    settings()
    close_embedded_server()
    given = get_current_settings().to_environment_variables(exclude_unset=True)  # as Prefect starts it
    assert given["PREFECT_SERVER_API_AUTH_STRING"] == given["PREFECT_API_AUTH_STRING"] == keys()[0]


def test_a_named_server_is_sent_nothing(settings):
    settings(**{"api.url": "http://prefect.example/api"})
    close_embedded_server()
    assert keys() == [None, None]


def test_a_password_that_is_set_is_the_one(settings):
    settings(**{"api.auth_string": "me:mine"})
    close_embedded_server()
    assert keys() == ["me:mine", "me:mine"]
