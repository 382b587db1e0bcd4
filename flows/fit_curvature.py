"""The flow `fit-curvature`: bases and curvature of a model on a corpus."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import BaseModel, ConfigDict, Field

from dataworth.config import CorpusRunConfig
from dataworth.lifecycle.cancelling import unless_cancelled
from dataworth.lifecycle.permissions import check_permitted
from dataworth.lifecycle.runs import announce, run_name
from dataworth.lifecycle.turns import each_in_turn
from dataworth.storage.locations import check_usable, default_store, location_of
from dataworth.storage.ref import StoreRef
from dataworth.tasks.corpus.task import prepare_corpus
from dataworth.tasks.curvature.task import fit_covariances, fit_matrices
from dataworth.tasks.model.alike import refuse_other_tokenizers
from dataworth.tasks.progress import run_logger
from dataworth.tasks.projection.task import make_bases

__all__ = ["Prepared", "fit_curvature", "needs_covariances", "prepared_stores", "store_folder"]


class Prepared(BaseModel):
    """Stores that a calling flow has made already."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: StoreRef = Field(description="The corpus, cut into windows.")
    bases: StoreRef = Field(description="The bases of the projection.")
    covariances: StoreRef | None = Field(None, description="The layers' whole covariances, where the run needs them.")


def store_folder(config: CorpusRunConfig) -> str:
    """The place of the stores, absolute, so that workers elsewhere find it.

    Raises:
        InputError: it cannot be written, and holds nothing to be read.
    """
    folder = location_of(config.store or default_store()).absolute()
    check_usable(folder, "--store")
    return str(folder)


def prepared_stores(config: CorpusRunConfig) -> Prepared:
    """Corpus and bases of a run of one checkpoint, made where they are not there yet."""
    store, model = store_folder(config), config.model.only
    corpus = prepare_corpus(store, model, config.corpus)
    covariances = None
    if needs_covariances(config):
        covariances = fit_covariances(store, model, corpus, config.curvature, config.gradients.batch_tokens)
    bases = make_bases(store, model, config.projection, covariances)
    return Prepared(corpus=corpus, bases=bases, covariances=covariances)


def needs_covariances(config: CorpusRunConfig) -> bool:
    """PCA bases are made of them, and without a projection KFAC and EK-FAC; else those of projected vectors will do."""
    if config.projection.bases is not None:
        return False
    factored = config.curvature.kind in ("kfac", "ekfac")
    return config.projection.kind == "pca" or (config.projection.kind == "identity" and factored)


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
    store = store_folder(config)

    def work(one: CorpusRunConfig) -> list[StoreRef]:
        stores = prepared or prepared_stores(one)
        if one.curvature.kind == "none":
            run_logger().info("curvature none: nothing to fit")
            return []
        tokens = one.gradients.batch_tokens
        return [
            fit_matrices(store, one.model.only, stores.corpus, stores.bases, stores.covariances, one.curvature, tokens)
        ]

    if prepared:
        return work(config)
    refuse_other_tokenizers(config.model.checkpoints)
    fitted = unless_cancelled(lambda: each_in_turn(store, config, work))
    return fitted if isinstance(fitted, State) else [ref for refs in fitted for ref in refs]
