"""The flow `fit-curvature`: bases and curvature of a model on a corpus."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from dataworth.config import CorpusRunConfig
from dataworth.lifecycle.cancelling import unless_cancelled
from dataworth.lifecycle.permissions import check_permitted
from dataworth.lifecycle.runs import announce, run_name
from dataworth.lifecycle.turns import each_in_turn
from dataworth.preparing import Prepared, fitted, prepared_stores, store_folder
from dataworth.storage.ref import StoreRef
from dataworth.tasked import TASKED
from dataworth.tasks.model.alike import refuse_other_tokenizers

__all__ = ["fit_curvature"]


@flow(
    name="fit-curvature",
    flow_run_name=run_name,
    description="Fits bases and curvature of a model on a corpus; kept, and reused.",
)
def fit_curvature(config: CorpusRunConfig, prepared: Prepared | None = None) -> list[StoreRef] | State[Any]:
    """Fit the curvature of the training loss in the projected space, for one checkpoint after another.

    Args:
        config: models, corpus, projection and curvature.
        prepared: stores a calling flow has made already for its one checkpoint, for which it has then taken its turn;
            leave empty otherwise.

    Returns:
        The curvature's store for each checkpoint; none for `kind: none`.
    """
    announce(config)
    check_permitted(config, prepared)
    if prepared:
        return fitted(config, prepared, TASKED)
    store = store_folder(config)
    refuse_other_tokenizers(config.model.checkpoints)

    def work(one: CorpusRunConfig) -> list[StoreRef]:
        return fitted(one, prepared_stores(one, TASKED), TASKED)

    made = unless_cancelled(lambda: each_in_turn(store, config, work))
    return made if isinstance(made, State) else [ref for refs in made for ref in refs]
