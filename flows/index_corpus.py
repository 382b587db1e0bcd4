"""The flow `index-corpus`: projected gradients of every document."""

from prefect import flow

from flows.config import CorpusRunConfig
from flows.fit_curvature import Prepared, prepared_stores, store_folder
from storage.ref import StoreRef
from tasks.gradients.task import index_gradients

__all__ = ["index_corpus"]


@flow(name="index-corpus", description="Stores the projected gradients of a corpus; documents already there are kept.")
def index_corpus(config: CorpusRunConfig, prepared: Prepared | None = None) -> StoreRef:
    """Compute and store the gradients of the documents that are not stored yet.

    Args:
        config: model, corpus and projection.
        prepared: stores a calling flow has made already; leave empty otherwise.
    """
    stores = prepared or prepared_stores(config)
    return index_gradients(
        store_folder(config), config.model, stores.corpus, stores.bases, config.gradients, what="the corpus"
    )
