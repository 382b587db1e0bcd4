"""The Prefect server that a run starts for itself where none is named: it asks for a key that only this process has.

It listens on loopback and keeps its runs in the same database as `dataworth ui`. Left open, a page in a browser could
leave a run there that a worker carries out later.
"""

import secrets

import prefect.context
from prefect.context import SettingsContext

__all__ = ["close_embedded_server"]


def close_embedded_server() -> None:
    """Give an embedded server, and this process's clients, a new key; do nothing where a server is named.

    It stands in Prefect's settings of this process alone: in the environment, it would reach servers that others start.
    """
    context = prefect.context.GLOBAL_SETTINGS_CONTEXT
    settings = context.settings
    if settings.api.url or settings.server.api.auth_string:
        return
    given = settings.api.auth_string
    auth = given.get_secret_value() if given else f"dataworth:{secrets.token_urlsafe(32)}"
    closed = settings.copy_with_update(updates={"api.auth_string": auth, "server.api.auth_string": auth})
    prefect.context.GLOBAL_SETTINGS_CONTEXT = SettingsContext(profile=context.profile, settings=closed)
