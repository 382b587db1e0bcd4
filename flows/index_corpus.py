"""The flow `index-corpus`: projected gradients of every document."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from dataworth.config import CorpusRunConfig
from dataworth.lifecycle.cancelling import unless_cancelled
from dataworth.lifecycle.permissions import check_permitted
from dataworth.lifecycle.runs import announce, run_name
from dataworth.lifecycle.turns import each_in_turn
from dataworth.preparing import Prepared, indexed, prepared_stores, refuse_nothing_kept, store_folder
from dataworth.storage.ref import StoreRef
from dataworth.tasked import TASKED
from dataworth.tasks.model.alike import refuse_other_tokenizers

__all__ = ["index_corpus"]


@flow(
    name="index-corpus",
    flow_run_name=run_name,
    description="Stores the projected gradients of a corpus; documents already there are kept.",
)
def index_corpus(config: CorpusRunConfig, prepared: Prepared | None = None) -> list[StoreRef] | State[Any]:
    """Compute and store the gradients of the documents that are not stored yet, for one checkpoint after another.

    Args:
        config: models, corpus and projection.
        prepared: stores a calling flow has made already for its one checkpoint, for which it has then taken its turn;
            leave empty otherwise.

    Returns:
        The store of gradients for each checkpoint.
    """
    announce(config)
    check_permitted(config, prepared)
    if prepared:
        return [indexed(config, prepared, TASKED)]
    refuse_nothing_kept(config)
    store = store_folder(config)

    def work(one: CorpusRunConfig) -> StoreRef:
        return indexed(one, prepared_stores(one, TASKED), TASKED)

    refuse_other_tokenizers(config.model.checkpoints)
    return unless_cancelled(lambda: each_in_turn(store, config, work))
