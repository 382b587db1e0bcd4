"""The game merged: coalitions that nobody trained, by models merged from the valued one and from each source's alone.

Training the base on each source alone reads the corpus once, so that all of these together cost as much as one training
of everybody. Models of all other coalitions are merged from their weights and the model's (see
tasks/training/merging.py), and what they lose on the queries is measured. Adapters begin at random, and two trainings
from different beginnings are not merged: of these everybody is trained again, too.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from dataworth.storage.coalitions import UtilityStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError, StoreIncompleteError
from dataworth.storage.locations import StoreFolders
from dataworth.storage.ref import fingerprint
from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.games.retrain import Retrain
from dataworth.tasks.coalitions.games.source_game import Material, SourceGame, UtilityKeeper, asked, valuation_of
from dataworth.tasks.coalitions.valuation import Valuation, with_queries
from dataworth.tasks.model.adapters import adapter_weights
from dataworth.tasks.model.loading import LoadedModel, load
from dataworth.tasks.progress import Progress, progress
from dataworth.tasks.training.merging import ALGORITHM, MergedModels, merging_coefficients, short_of_memory
from dataworth.tasks.training.reach import RetrainedCheck
from dataworth.tasks.training.retraining import packed_difference

__all__ = ["MergedCheck", "MergedGame"]

NAME = "merged"
# Among the facts of a valuation.
REACHED = "reach in the weights"
# Sources beyond which few drawn coalitions tell little of each, and trainings on each alone have hardly a step.
MAX_SOURCES = 64
# A check fails where the trainings, merged, go less than this part of the way to the model, in the weights, or where
# one of them alone, which has fewer steps, goes so many times as far as the model.
LEAST_REACH, MOST_ALONE = 0.3, 1.25
# To merge what another run drops at the same time.
TRIES = 3


@dataclass(frozen=True)
class MergedCheck:
    """Do the trainings on single sources lead to where the model is?

    Args:
        everybody: loss of the model, nats summed over the queries.
        base: of the base.
        reach: part of the way from the base to the model, in the weights, that a model goes which is merged from the
            trainings on single sources.
        farthest: of these trainings, how far it goes in the weights, as a part of how far the model is from the base.
        too_many: why nothing was trained, where sources are too many.
    """

    everybody: float
    base: float
    reach: float
    farthest: float
    too_many: str = ""

    @property
    def reason(self) -> str:
        """Why it is not reliable; empty where it is."""
        if self.too_many:
            return self.too_many
        if np.isnan(self.reach):
            return "the model's weights are those of its base, so that nothing was taught"
        if self.reach < LEAST_REACH:
            said = f"trainings on each source alone, merged, go {self.reach:.0%} of the way from the base to the model"
        elif self.farthest > MOST_ALONE:
            said = f"training on one source alone goes {self.farthest:.1f} times as far from the base as the model is"
        else:
            return ""
        return f"{said}: set {setting('training')} to how it was trained"

    @property
    def reliable(self) -> bool:
        return not self.reason

    def facts(self) -> dict[str, Any]:
        """What is printed beside the values."""
        return {"v(all)": -self.everybody, "v(none)": -self.base, REACHED: self.reach, "reliable": self.reliable}

    def sentences(self) -> list[str]:
        """For a log."""
        said = f"loss of all queries: {self.everybody:.4g} nats of the model, {self.base:.4g} of the base"
        if self.too_many:
            return [said]
        return [f"{said}; trainings on each source alone, merged, go {self.reach:.0%} of the way between their weights"]


class MergedGame(SourceGame):
    """Every coalition's model is merged; nobody, everybody and each source alone are what they are.

    Args:
        material: with how to train, and a store for trainings.
        kept: utilities of coalitions, merged or not.
    """

    def __init__(self, material: Material, kept: UtilityKeeper) -> None:
        super().__init__()
        self._material, self._kept, self._trainings = material, kept, material.kept_trainings
        self._queries = CorpusStore.open(material.needed.queries)
        self._tokens = material.players.column("n_tokens")[0].astype(np.float64)
        self._trained = self.resources.enter_context(Retrain(material, self._trainings, most=self.n_players + 1))
        everybody, self._alone = np.ones((1, self.n_players), bool), np.eye(self.n_players, dtype=bool)
        self._trained_on = np.concatenate([everybody, self._alone])
        self._again = bool(adapter_weights(self._base.model))

    @classmethod
    def made(cls, material: Material, kept: UtilityKeeper) -> "MergedGame":
        """Measure the model and its base."""
        return cls(material, kept)

    @property
    def n_players(self) -> int:
        return len(self._tokens)

    def check(self) -> MergedCheck | RetrainedCheck | None:
        """Is the recipe that of the model, and are sources few enough? A single source is not trained on."""
        if self.n_players == 1:
            return None
        base, everybody = float(self._trained.base.sum()), float(self._trained.everybody.sum())
        if self.n_players > MAX_SOURCES:
            said = f"{self.n_players:,} sources are more than the {MAX_SOURCES} of which each is trained on alone"
            return MergedCheck(everybody, base, float("nan"), float("nan"), said)
        checked: MergedCheck | RetrainedCheck
        if self._again:
            self._trained.train_for_weights(self._trained_on[:1], self._trainings)
            checked = self._trained.check()
        else:
            checked = MergedCheck(everybody, base, *self._reach())
        if not checked.reliable:
            self._forget()
        return checked

    def valuation(self) -> Valuation:
        """From coalitions, all or sampled."""
        sources = self._material.sources
        sample = asked(self, self._queries.n_examples, sources, self._kept, at_once=1)
        self._forget()
        made = valuation_of(sample, NAME, "merged models")
        first = "a training on all" if self._again else "the model"
        how = f"models merged from {first} and from {self.n_players} trainings on one source each; {sample.reason}"
        made = made.with_facts(estimator=how)
        valuation = with_queries(made, sources.confidence)
        said = f"{valuation.facts['errors']}; not of the merging, which {setting('sources.trainings')} measures"
        return valuation.with_facts(errors=said)

    def utilities(self, masks: Bool[np.ndarray, "m s"]) -> Float[np.ndarray, "m q"]:
        """Minus the measured losses."""
        sizes = masks.sum(axis=1)
        found = np.empty((len(masks), self._queries.n_examples))
        found[sizes == 0] = -self._trained.base
        if (sizes == self.n_players).any():
            found[sizes == self.n_players] = self._of_everybody
        alone = (sizes == 1) & (self.n_players > 1)
        if alone.any():
            found[alone] = self._of_alone[masks[alone].argmax(axis=1)]
        others = (sizes > 1) & (sizes < self.n_players)
        if others.any():
            coefficients = merging_coefficients(masks[others], self._trained_on, self._tokens)
            losses = self._models.losses(coefficients, self._queries)
            self._bar.advance(len(losses))
            if not np.isfinite(losses).all():
                self._forget()
                raise InputError(
                    f"{setting('sources.game')} {NAME}: a model merged from trainings has a loss that is no number: "
                    "pass another game"
                )
            found[others] = -losses
        return found

    @cached_property
    def _bar(self) -> Progress:
        n_models = min(2**self.n_players, self._material.sources.most_coalitions) - self.n_players - 2
        return self.resources.enter_context(progress("merged models", n_models, "model"))

    @cached_property
    def _of_everybody(self) -> Float[np.ndarray, " q"]:
        """The model's utility, or that of a training again."""
        again = self._again and self.n_players > 1
        return self._trained.of(self._trained_on[:1])[0] if again else -self._trained.everybody

    @cached_property
    def _of_alone(self) -> Float[np.ndarray, "s q"]:
        """Utilities of each source alone; what is not known is trained."""
        return self._trained.of(self._alone)

    @property
    def _base(self) -> LoadedModel:
        return load(self._material.needed.model, 1.0)

    @cached_property
    def _models(self) -> MergedModels:
        if short := short_of_memory(self._base, len(self._trained_on)):
            raise InputError(
                f"{setting('sources.game')} {NAME}: {short}: value coarser sources ({setting('sources.by')}), or pass "
                "another game"
            )
        for _ in range(TRIES - 1):
            with suppress(StoreIncompleteError):  # another run was done with some, and dropped them
                return self._merged()
        return self._merged()

    def _merged(self) -> MergedModels:
        trained = self._trained_on if self._again else self._alone
        self._trained.train_for_weights(trained, self._trainings)
        differences: Iterable[bytes] = (self._trainings.weights(mask) for mask in trained)
        if not self._again:
            everybody = packed_difference(load(self._material.needed.model).model, self._weights_of_base())
            differences = chain([everybody], differences)
        return MergedModels(self._base, differences, len(self._trained_on))

    def _weights_of_base(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self._base.model.state_dict().items()}

    def _forget(self) -> None:
        """The arrays, and the weights, unless further models are merged of them now."""
        self.__dict__.pop("_models", None)
        if not self._material.sources.trainings:
            self._trainings.drop_weights()

    def _reach(self) -> tuple[float, float]:
        """`reach` and `farthest` of the check; measured once and kept, as they need the weights of all trainings."""
        _, known = self._reaches.known(self.n_players, 2)
        if len(known):
            return float(known[0, 0]), float(known[0, 1])
        among = merging_coefficients(self._trained_on[:1], self._alone, self._tokens)[0]
        (reach,), lengths = self._models.along(np.append(0.0, among)[None], 0), self._models.lengths()
        farthest = lengths[1:].max() / lengths[0] if lengths[0] > 0 else np.nan
        self._reaches.add(self._trained_on[:1], np.array([[reach, farthest]]))
        return float(reach), float(farthest)

    @cached_property
    def _reaches(self) -> UtilityStore:
        parts = {"reach of merged models": ALGORITHM, "of": self._trainings.fingerprint}
        root, attributes = StoreFolders(self._material.store).games, self._trainings.entry("attributes")
        return UtilityStore.create(root, fingerprint(parts), attributes)
