"""The state a flow run ends in under a name of its own, with what it came to."""

from contextlib import suppress
from typing import Any

from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.serializers import JSONSerializer
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH

__all__ = ["completed"]


def completed(name: str, message: str, outcome: dict[str, Any]) -> State[Any]:
    """The state to return from a flow: Completed, under another name.

    The outcome is kept in Prefect's result storage: where the server took the state and its answer was lost, Prefect
    asks again, is told that the run has ended, and knows of the outcome only what the server's state points to.

    Args:
        name: of the state, in the user interface.
        message: why.
        outcome: what the flow returns to whoever called it.
    """
    ending = State(type=StateType.COMPLETED, name=name, message=message, data=outcome)
    if FlowRunContext.get() is not None:
        folder = LocalFileSystem(basepath=str(PREFECT_LOCAL_STORAGE_PATH.value()))
        store = ResultStore(result_storage=folder, serializer=JSONSerializer())
        ending.data = store.create_result_record(outcome)
        with suppress(OSError):  # only a lost answer needs it
            store.persist_result_record(ending.data)
    return ending
