"""What a command sets while it uses the server of its home, and that nothing of it stays."""

import os
from contextlib import contextmanager
from types import SimpleNamespace

from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY

from dataworth.serving import local_server as module


def test_runs_of_this_home_send_no_heartbeats(monkeypatch):
    record = module.Record(process=1, port=4321, key="k")

    @contextmanager
    def nothing(*_):
        yield SimpleNamespace(record=record, wait=lambda: None)

    monkeypatch.setattr(module, "local_server", nothing)
    before = dict(os.environ)
    assert PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() == 30
    with module.prefect_api(lambda: None):
        assert PREFECT_API_URL.value() == "http://127.0.0.1:4321/api"
        assert PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() is None
    assert dict(os.environ) == before
    assert PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() == 30
