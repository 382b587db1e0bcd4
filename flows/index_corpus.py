"""The flow `index-corpus`: projected gradients of every document."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.cancelling import unless_cancelled
from flows.config import CorpusRunConfig
from flows.fit_curvature import Prepared, prepared_stores, store_folder
from flows.runs import announce, run_name
from flows.turns import in_turn
from storage.ref import StoreRef
from tasks.gradients.task import index_gradients

__all__ = ["index_corpus"]


@flow(
    name="index-corpus",
    flow_run_name=run_name,
    description="Stores the projected gradients of a corpus; documents already there are kept.",
)
def index_corpus(config: CorpusRunConfig, prepared: Prepared | None = None) -> StoreRef | State[Any]:
    """Compute and store the gradients of the documents that are not stored yet.

    Args:
        config: model, corpus and projection.
        prepared: stores a calling flow has made already, which then has taken its turn; leave empty otherwise.
    """
    announce(config)
    store = store_folder(config)

    def work() -> StoreRef:
        stores = prepared or prepared_stores(config)
        return index_gradients(store, config.model, stores.corpus, stores.bases, config.gradients, what="the corpus")

    return work() if prepared else unless_cancelled(lambda: in_turn(store, config, work))
