"""Utilities of coalitions that nobody trained, by models merged from those that were, measured once and kept."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from dataworth.storage.coalitions import UtilityStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError, StoreIncompleteError
from dataworth.storage.locations import StoreFolders
from dataworth.storage.ref import fingerprint
from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.estimation.designs import all_coalitions, coalition_rows, firsts_and_lasts
from dataworth.tasks.coalitions.games.retrain import Retrain
from dataworth.tasks.coalitions.games.source_game import Material
from dataworth.tasks.model.loading import load
from dataworth.tasks.progress import progress, run_logger
from dataworth.tasks.training.merging import (
    ALGORITHM,
    MergedModels,
    left_out_coefficients,
    merging_coefficients,
    short_of_memory,
)

__all__ = ["Merged", "left_out_counts", "merged_from"]

# Sources of which every coalition's model is merged, 2^n.
MAX_SOURCES = 10
# The part, of what is missed by leaving out a training that is merged from, that is missed elsewhere (see
# `interpolated`): of trainings on everybody and each alone; also on all but each. Chosen on one corpus of the bench of
# truth, reported on another.
COUNTS_OF_ALONE, COUNTS_OF_BOTH = (0.35, 0.15), (0.56, 0.36)
# To merge what another run drops at the same time.
TRIES = 3


class Merged:
    """Models of every coalition, merged from those of everybody, of everybody but each source, and of sources alone.

    Where trainings are too few for everybody but each source, they are of everybody and of sources alone; where one is
    missing, it is that of the smallest source alone. The weights then stay, for those that may come.

    Args:
        material: sources, and how to train.
        trained: trains them.
        kept: their utilities, and their weights until everything is merged.

    trained_on: (k, s) the coalitions that are merged from, everybody first; none where nothing is merged.
    """

    def __init__(self, material: Material, trained: Retrain, kept: UtilityStore) -> None:
        self._material, self._trained, self._kept = material, trained, kept
        self._tokens = material.players.column("n_tokens")[0].astype(np.float64)
        self.trained_on = merged_from(self._tokens, material.sources.trainings)
        self._all_there = len(self.trained_on) == 1 + len(firsts_and_lasts(self._tokens))

    @property
    def possible(self) -> bool:
        """Are there trainings enough, and few enough sources?"""
        return len(self.trained_on) > 0

    def begin(self) -> None:
        """Train everybody so that its weights are there to be merged, where they will be."""
        if any(len(table.missing) for table in self._tables.values()):
            self._refuse_without_memory()
            self._trained.train_for_weights(self.trained_on[:1], self._kept)

    def everything(self) -> Float[np.ndarray, "c q"]:
        """Utilities of all 2^s coalitions' merged models, in the order of `all_coalitions`."""
        return self._measured(self._tables["all"])

    def left_out(self) -> Float[np.ndarray, "j q"]:
        """Of each coalition that is merged from, but everybody: the utility of its model merged from the others."""
        return self._measured(self._tables["left out"])

    def done(self) -> None:
        """Weights are needed no more, unless a training was missing that a later run may do."""
        if self._all_there:
            self._kept.drop_weights()
        else:
            said = "the weights of %d trainings stay in %s for the next ones, until %s is twice the sources and one"
            run_logger().info(said, len(self.trained_on), self._kept.path, setting("sources.trainings"))

    @cached_property
    def _tables(self) -> dict[str, "_Table"]:
        masks = all_coalitions(len(self._tokens))
        without = left_out_coefficients(self.trained_on, self._tokens)
        return {
            "all": self._table("all", masks, merging_coefficients(masks, self.trained_on, self._tokens)),
            "left out": self._table("left out", self.trained_on[1:], without[1:]),
        }

    def _table(self, part: str, masks: np.ndarray, coefficients: np.ndarray) -> "_Table":
        parts = {"merged": ALGORITHM, "of": self._kept.fingerprint, "part": part}
        parts["trained on"] = coalition_rows(self.trained_on).tolist()
        attributes = {**self._kept.entry("attributes"), "merged": part}
        store = UtilityStore.create(StoreFolders(self._material.store).games, fingerprint(parts), attributes)
        return _Table(store, masks, coefficients, CorpusStore.open(self._material.needed.queries).n_examples)

    def _measured(self, table: "_Table") -> np.ndarray:
        missing = table.missing
        if len(missing):
            self._refuse_without_memory()
            for _ in range(TRIES):
                self._trained.train_for_weights(self.trained_on, self._kept)
                with suppress(StoreIncompleteError):  # another run was done with some, and dropped them
                    self._measure(table, missing)
                    break
        return table.utilities

    @property
    def _fewer(self) -> str:
        return f"pass at most {len(self._tokens)}, with which nothing is merged"

    def _refuse_without_memory(self) -> None:
        """Whatever is free now must not decide how values are estimated.

        Raises:
            InputError: the arrays of all trainings do not fit into memory.
        """
        if short := short_of_memory(load(self._material.needed.model, 1.0), len(self.trained_on)):
            raise InputError(f"{setting('sources.trainings')}: {short}: {self._fewer}")

    def _measure(self, table: "_Table", missing: np.ndarray) -> None:
        parts = self._material.needed
        base, queries = load(parts.model, 1.0), CorpusStore.open(parts.queries)
        models = MergedModels(base, (self._kept.weights(mask) for mask in self.trained_on), len(self.trained_on))
        with progress("merged models", len(missing), "model") as bar:
            for number in missing:
                losses = models.losses(table.coefficients[[number]], queries)
                if not np.isfinite(losses).all():
                    self._kept.drop_weights()
                    raise InputError(
                        f"{setting('sources.trainings')}: a model merged from trainings has a loss that is no number: "
                        f"{self._fewer}"
                    )
                table.store.add(table.masks[[number]], -losses)
                bar.advance()


def left_out_counts(trained_on: Bool[np.ndarray, "k s"]) -> tuple[float, float]:
    """Of `interpolated`, by what is merged from."""
    n_players = trained_on.shape[1]
    return COUNTS_OF_BOTH if (trained_on.sum(axis=1) == n_players - 1).sum() > 1 else COUNTS_OF_ALONE


def merged_from(tokens: Float[np.ndarray, " s"], n_trainings: int) -> Bool[np.ndarray, "k s"]:
    """The coalitions that so many trainings are made on to be merged, everybody first; none where nothing is merged.

    Args:
        tokens: of each source.
        n_trainings: that there may be.
    """
    n_players = len(tokens)
    if not 2 <= n_players <= MAX_SOURCES or n_trainings <= n_players:
        return np.zeros((0, n_players), bool)
    chosen = firsts_and_lasts(tokens)
    if n_trainings < len(chosen):
        chosen = chosen[chosen.sum(axis=1) == 1]
    return np.concatenate([np.ones((1, n_players), bool), chosen])[:n_trainings]


@dataclass(frozen=True)
class _Table:
    """Utilities of merged models, kept as they are measured.

    Args:
        store: keeps them.
        masks: (m, s) coalitions.
        coefficients: (m, k) of each one's model.
        n_queries: q.
    """

    store: UtilityStore
    masks: np.ndarray
    coefficients: np.ndarray
    n_queries: int

    @property
    def missing(self) -> np.ndarray:
        """Numbers of those that were not measured yet."""
        known, _ = self.store.known(self.masks.shape[1], self.n_queries)
        return np.flatnonzero(~np.isin(coalition_rows(self.masks), coalition_rows(known)))

    @property
    def utilities(self) -> np.ndarray:
        """(m, q), all measured."""
        known, utilities = self.store.known(self.masks.shape[1], self.n_queries)
        rows = {row: number for number, row in enumerate(coalition_rows(known).tolist())}
        measured: np.ndarray = utilities[[rows[row] for row in coalition_rows(self.masks).tolist()]]
        return measured
