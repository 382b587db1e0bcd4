"""What a run came to reaches its caller under any name of its state, also where the server's answer was lost."""

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings

from dataworth.lifecycle.ending import completed
from tests.harness.api import shared_prefect_server

pytestmark = pytest.mark.system

OUTCOME = {"results": "/out", "mlflow_run_id": None}


@flow(name="named")
def named():
    return completed("Not logged", "MLflow is away", OUTCOME)


@pytest.fixture
def server():
    with temporary_settings({PREFECT_API_URL: shared_prefect_server()}):
        yield


@pytest.mark.parametrize("lost", [False, True])
def test_the_outcome_reaches_the_caller(server, monkeypatch, lost):
    asked: list[str] = []
    once = SyncPrefectClient.set_flow_run_state

    def set_flow_run_state(self, flow_run_id, state, force=False):
        """The server takes a last state and its answer is lost, so Prefect's client asks again."""
        asked.append(state.name)
        if lost and state.is_completed():
            once(self, flow_run_id, state, force=force)
        return once(self, flow_run_id, state, force=force)

    monkeypatch.setattr(SyncPrefectClient, "set_flow_run_state", set_flow_run_state)
    assert named() == OUTCOME
    assert asked == ["Running", "Not logged"]


def test_outside_of_a_run_it_is_a_state_all_the_same():
    state = completed("Skipped", "another run", {"skipped": "another run"})
    assert (state.name, state.is_completed(), state.data) == ("Skipped", True, {"skipped": "another run"})
