"""What every game over sources is: made of stores, checked against the model, played into a valuation."""

from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from dataworth.storage.coalitions import UtilityStore
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.estimation.designs import Coalitions
from dataworth.tasks.coalitions.estimation.estimators import with_total
from dataworth.tasks.coalitions.estimation.sampling import Sampled, sampled, widest_interval
from dataworth.tasks.coalitions.estimation.semivalues import size_weights
from dataworth.tasks.coalitions.parts import GameParts
from dataworth.tasks.coalitions.players import Players
from dataworth.tasks.coalitions.registry import GAMES
from dataworth.tasks.coalitions.valuation import ASKED_NOW, Valuation
from dataworth.tasks.configuration import ClusterConfig

__all__ = [
    "Check",
    "Game",
    "Material",
    "NothingKept",
    "SourceGame",
    "UtilityKeeper",
    "asked",
    "game_class",
    "valuation_of",
]


@runtime_checkable
class Game(Protocol):
    """A utility for every coalition of players and every query: minus the query's loss, in nats.

    A player may take part to a degree from 0 to 1, with that part of its gradients and curvatures: a fuzzy coalition.
    Source: Aubin 1974, "Coeur et valeur des jeux flous a paiements lateraux".
    """

    @property
    def n_players(self) -> int: ...

    def utilities(self, masks: Coalitions) -> Float[np.ndarray, "m q"]:
        """(m, q) utilities of (m, s) coalitions."""


@runtime_checkable
class UtilityKeeper(Protocol):
    """Where the utilities of coalitions are kept (see dataworth.storage.coalitions)."""

    def known(self, n_players: int, n_queries: int) -> tuple[np.ndarray, np.ndarray]: ...

    def add(self, masks: np.ndarray, utilities: np.ndarray) -> None: ...


class NothingKept:
    """Of a game that asks for no coalition twice."""

    def known(self, n_players: int, n_queries: int) -> tuple[np.ndarray, np.ndarray]:
        """None."""
        return np.empty((0, n_players), bool), np.empty((0, n_queries))

    def add(self, masks: np.ndarray, utilities: np.ndarray) -> None:
        """Of no effect."""


@runtime_checkable
class Check(Protocol):
    """What was measured of a game for this model (see games/trust.py)."""

    @property
    def reliable(self) -> bool: ...

    @property
    def reason(self) -> str:
        """Why it is not reliable; empty where it is."""

    def facts(self) -> dict[str, Any]: ...

    def sentences(self) -> list[str]: ...


@dataclass(frozen=True)
class Material:
    """What a game may be made of.

    Args:
        store: root of the stores.
        players: sources and queries, with the sums of their scores.
        sources: the game's settings.
        parts: stores of the sums or of what to train; None where the game is of scores.
        cluster: where it has an address or several workers, they take part.
        trainings: utilities of coalitions that were trained on, and weights for as long as they are needed; None where
            nothing is trained.
    """

    store: str
    players: Players
    sources: SourcesConfig
    parts: GameParts | None
    cluster: ClusterConfig
    trainings: UtilityStore | None = None

    @property
    def needed(self) -> GameParts:
        """The parts.

        Raises:
            ValueError: none were made, as for a game of scores.
        """
        if self.parts is None:
            raise ValueError(f"the game {self.sources.game} is made of more than scores")
        return self.parts

    @property
    def kept_trainings(self) -> UtilityStore:
        """The store of trainings.

        Raises:
            ValueError: there is none, as nothing is trained.
        """
        if self.trainings is None:
            raise ValueError(f"the game {self.sources.game} is of trainings, which have no store")
        return self.trainings


class SourceGame(ABC):
    """A game over sources. A new one is a class of its own in a file of its own, and an entry of the registry.

    A context manager: what it enters into `resources` ends with the block.
    """

    def __init__(self) -> None:
        self.resources = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.resources.close()

    @classmethod
    @abstractmethod
    def made(cls, material: Material, kept: UtilityKeeper) -> "SourceGame":
        """Read what it needs; `kept` knows and gets to know utilities of its coalitions."""

    def check(self) -> Check | None:
        """Is it to be trusted for this model? None: there is nothing that could be wrong."""
        return None

    @abstractmethod
    def valuation(self) -> Valuation:
        """What everybody is worth by it."""

    def surrogate(self) -> Game | None:
        """Its coalitions, where they cost little and tell more than the values do."""
        return None


def game_class(name: str) -> type[SourceGame]:
    """The class of a game of the registry."""
    module, attribute = GAMES[name].where.split(":")
    registered: type[SourceGame] = getattr(import_module(module), attribute)
    return registered


def asked(
    game: Game,
    n_queries: int,
    sources: SourcesConfig,
    kept: UtilityKeeper,
    known: tuple[Bool[np.ndarray, "k s"], Float[np.ndarray, "k q"]] | None = None,
    at_once: int | None = None,
) -> Sampled:
    """Ask a game for coalitions until its values are known; what was asked before is not asked again.

    Args:
        game: of the sources, or of players that hold portions of them.
        n_queries: of the game.
        sources: semivalue, budget, tolerance, confidence, seed.
        kept: what is known of the game, and gets to know.
        known: coalitions whose utilities are known, where `kept` is of other players; nothing is added to it then.
        at_once: coalitions after which their utilities are kept; None: all that are asked together.
    """

    def utilities(masks: Bool[np.ndarray, "m s"]) -> Float[np.ndarray, "m q"]:
        step = at_once or max(1, len(masks))
        answers = [np.empty((0, n_queries))]
        for first in range(0, len(masks), step):
            part = masks[first : first + step]
            answers.append(game.utilities(part))
            if known is None:
                kept.add(part, answers[-1])
        return with_total(np.concatenate(answers).T).T

    masks, before = kept.known(game.n_players, n_queries) if known is None else known
    return sampled(
        utilities,
        game.n_players,
        size_weights(game.n_players, sources.semivalue, sources.alpha, sources.beta),
        sources.tolerance,
        sources.most_coalitions,
        sources.confidence,
        np.random.default_rng(sources.seed),
        known=(masks, with_total(before.T).T) if len(masks) else None,
        decisive=-1,
    )


def valuation_of(sample: Sampled, game: str, utility: str) -> Valuation:
    """What was asked for, with the errors of sampled coalitions.

    Args:
        sample: by `asked`.
        game: its name.
        utility: how that of a coalition is found.
    """
    facts = {
        "estimator": sample.reason,
        "ended by": sample.ended_by,
        "widest interval": sample.widest,
        "widest interval of a query": widest_interval(sample.estimate),
        "coalitions": sample.estimate.n_coalitions,
        ASKED_NOW: sample.n_evaluated,
        "utility": utility,
    }
    return Valuation.of_estimate(sample.estimate, game, facts, exact=sample.ended_by == "exact")
