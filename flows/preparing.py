"""The steps of a run, plain or as Prefect's tasks, and what every run begins with: a store, a corpus and bases.

Nothing here knows Prefect: a notebook calls the steps, a flow its tasks, in the same order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dataworth.config import CorpusRunConfig
from dataworth.storage.errors import InputError
from dataworth.storage.locations import check_usable, default_store, location_of
from dataworth.storage.ref import StoreRef
from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.steps import average_values, value_sources
from dataworth.tasks.corpus.steps import prepare_corpus, prepare_queries
from dataworth.tasks.counterfactual.steps import certify
from dataworth.tasks.curvature.steps import fit_covariances, fit_matrices, fit_query_factors, fit_source_sums
from dataworth.tasks.gradients.directions import make_directions
from dataworth.tasks.gradients.steps import index_gradients
from dataworth.tasks.progress import run_logger
from dataworth.tasks.projection.steps import make_bases
from dataworth.tasks.scoring.steps import average_scores, replayed_scores, score_corpus
from dataworth.tasks.scoring.token_steps import tell_tokens
from dataworth.tasks.training.candidates import train_on_candidates
from dataworth.tasks.training.steps import replay_training

__all__ = [
    "PLAIN",
    "Prepared",
    "Steps",
    "fitted",
    "indexed",
    "needs_covariances",
    "prepared_stores",
    "refuse_nothing_kept",
    "store_folder",
]


@dataclass(frozen=True)
class Steps:
    """The steps of a valuation by their names; a door puts its own in their place, with the same parameters."""

    prepare_corpus: Callable[..., StoreRef] = prepare_corpus
    prepare_queries: Callable[..., StoreRef] = prepare_queries
    fit_covariances: Callable[..., StoreRef] = fit_covariances
    make_bases: Callable[..., StoreRef] = make_bases
    fit_matrices: Callable[..., StoreRef] = fit_matrices
    fit_source_sums: Callable[..., dict[str, StoreRef]] = fit_source_sums
    fit_query_factors: Callable[..., StoreRef] = fit_query_factors
    index_gradients: Callable[..., StoreRef] = index_gradients
    make_directions: Callable[..., StoreRef] = make_directions
    score_corpus: Callable[..., StoreRef] = score_corpus
    average_scores: Callable[..., StoreRef] = average_scores
    tell_tokens: Callable[..., StoreRef] = tell_tokens
    replay_training: Callable[..., StoreRef] = replay_training
    replayed_scores: Callable[..., StoreRef] = replayed_scores
    train_on_candidates: Callable[..., StoreRef] = train_on_candidates
    value_sources: Callable[..., StoreRef] = value_sources
    average_values: Callable[..., StoreRef] = average_values
    certify: Callable[..., StoreRef] = certify

    def fit(self, config: CorpusRunConfig, prepared: "Prepared") -> list[StoreRef]:
        """The curvature of one checkpoint; none for `kind: none`."""
        return fitted(config, prepared, self)

    def index(self, config: CorpusRunConfig, prepared: "Prepared") -> StoreRef:
        """The gradients of the corpus under one checkpoint."""
        return indexed(config, prepared, self)

    def in_turn(self, config: CorpusRunConfig, work: Callable[[], Any]) -> Any:
        """Do some work of a run; flows may wait here for other runs that do the same."""
        return work()


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


def prepared_stores(config: CorpusRunConfig, steps: Steps) -> Prepared:
    """Corpus and bases of a run of one checkpoint, made where they are not there yet."""
    store, model = store_folder(config), config.model.only
    corpus = steps.prepare_corpus(store, model, config.corpus)
    covariances = None
    if needs_covariances(config):
        batch_tokens, projection = config.gradients.batch_tokens, config.projection
        covariances = steps.fit_covariances(store, model, corpus, config.curvature, batch_tokens, projection)
    bases = steps.make_bases(store, model, config.projection, covariances)
    return Prepared(corpus=corpus, bases=bases, covariances=covariances)


def refuse_nothing_kept(config: CorpusRunConfig) -> None:
    """Refuse to index where no gradient would be kept.

    Raises:
        InputError: it is asked for.
    """
    if config.gradients.keep == "none":
        raise InputError(
            f"{setting('gradients.keep')} none: is of a valuation, whose queries come first: leave it out, or run "
            "`dataworth value`"
        )


def needs_covariances(config: CorpusRunConfig) -> bool:
    """Whether a run needs the layers' whole covariances: for PCA bases, or for KFAC and EK-FAC without a projection."""
    if config.projection.bases is not None:
        return False
    factored = config.curvature.kind in ("kfac", "ekfac")
    return config.projection.kind == "pca" or (config.projection.kind == "identity" and factored)


def fitted(config: CorpusRunConfig, prepared: Prepared, steps: Steps) -> list[StoreRef]:
    """The curvature of one checkpoint; none for `kind: none`."""
    if config.curvature.kind == "none":
        run_logger().info("curvature none: nothing to fit")
        return []
    store, model, tokens = store_folder(config), config.model.only, config.gradients.batch_tokens
    made = steps.fit_matrices(
        store, model, prepared.corpus, prepared.bases, prepared.covariances, config.curvature, tokens
    )
    return [made]


def indexed(config: CorpusRunConfig, prepared: Prepared, steps: Steps) -> StoreRef:
    """The gradients of the corpus under one checkpoint."""
    store, model = store_folder(config), config.model.only
    return steps.index_gradients(store, model, prepared.corpus, prepared.bases, config.gradients, what="the corpus")


PLAIN = Steps()
