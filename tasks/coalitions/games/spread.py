"""Games on the workers of a Dask cluster: an expanded one by its layers, a measured one by its coalitions.

Of an expanded game each worker holds the sums of some layers, so that together they hold them once: what a coalition's
step in those layers tells of the queries, and its squared length, add up over the layers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from dataworth.tasks.cluster import MAX_LOSSES, dask_client, named_losses, wants_cluster, windowed
from dataworth.tasks.coalitions.estimation.designs import Coalitions
from dataworth.tasks.coalitions.games.expansion import QueryExpansion
from dataworth.tasks.coalitions.games.newton_steps import NewtonSteps
from dataworth.tasks.coalitions.games.step_games import ExpandedGame
from dataworth.tasks.configuration import ClusterConfig

__all__ = ["PARTS", "SpreadGame", "SpreadRows", "game_client"]

DOING = "asking for the utilities of coalitions"
COALITIONS_AT_ONCE = 256
# Rows on the cluster or waiting there, for each of its threads.
ROWS_AHEAD = 4
# Of the layers, however many workers there are, so that sums are rounded in the same way.
PARTS = 16


@contextmanager
def game_client(cluster: ClusterConfig, n_parts: int) -> Iterator[Any]:
    """A Dask client where a cluster is asked for, else None: the game is played in this process."""
    if not wants_cluster(cluster):
        yield None
        return
    with dask_client(cluster, n_parts) as client:
        yield client


@dataclass(frozen=True)
class _Layers:
    """What a worker holds."""

    steps: NewtonSteps
    expansion: QueryExpansion

    def along(self, masks: np.ndarray) -> np.ndarray:
        """(m, r + 1) along the queries, then the squared length."""
        torch.set_num_threads(1)
        steps = self.steps(masks)
        return np.concatenate([self.expansion.along(steps), (steps**2).sum(axis=1, keepdims=True)], axis=1)


def _along(layers: _Layers, masks: np.ndarray) -> np.ndarray:
    return layers.along(masks)


class SpreadGame:
    """An `ExpandedGame` whose utilities the workers of a cluster find together.

    Args:
        game: to be spread.
        client: of the cluster.
    """

    def __init__(self, game: ExpandedGame, client: Any) -> None:
        self._game, self._client = game, client
        self._held: list[Any] = []

    @property
    def n_players(self) -> int:
        return self._game.n_players

    def utilities(self, masks: Coalitions) -> Float[np.ndarray, "m q"]:
        """Minus the expanded losses.

        Raises:
            DataworthError: the cluster was lost.
        """
        expansion, steps = self._game.expansion, self._game.steps
        utilities = np.empty((len(masks), len(expansion.losses)))
        with named_losses(DOING, self._client):
            for first in range(0, len(masks), COALITIONS_AT_ONCE):
                rows = slice(first, first + COALITIONS_AT_ONCE)
                told = self._asked(masks[rows])
                utilities[rows] = -expansion.losses_along(told[:, :-1] * steps.shortening(told[:, -1:]))
        return utilities

    def _asked(self, masks: np.ndarray) -> np.ndarray:
        """What all layers tell; layers held by workers that died are handed out again."""
        from distributed import CancelledError

        n_lost = 0
        while True:
            try:
                if not self._held:
                    self._held = self._handed_out()
                futures = [self._client.submit(_along, layers, masks, pure=False) for layers in self._held]
                told: np.ndarray = np.sum(self._client.gather(futures), axis=0)
                return told
            except CancelledError:
                self._held = []
                n_lost += 1
                if n_lost > MAX_LOSSES or self._client.status != "running":
                    raise

    def _handed_out(self) -> list[Any]:
        workers = sorted(self._client.scheduler_info(n_workers=-1)["workers"])
        parts = self._game.steps.by_layers(PARTS)
        return [
            self._client.scatter(
                _Layers(steps, self._game.expansion.of_columns(columns)),
                workers=[workers[number % len(workers)]],
                hash=False,
            )
            for number, (steps, columns) in enumerate(parts)
        ]


@dataclass(frozen=True)
class SpreadRows:
    """A function of rows, computed row by row on the workers of a cluster: losses of steps, or after trainings.

    A worker that dies is one of at most `MAX_LOSSES` a row may take with it; its rows are computed elsewhere.

    Args:
        work: from (1, k) rows to (1, q); sent with every row, so small.
        client: of the cluster.
    """

    work: Callable[[np.ndarray], np.ndarray]
    client: Any

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """(m, q) of (m, k) rows, m at least 1.

        Raises:
            DataworthError: the cluster was lost.
        """
        client = self.client

        def submit(row: np.ndarray, held: Sequence[Any]) -> Any:
            return client.submit(_alone, self.work, row[None], pure=False)

        n_ahead = ROWS_AHEAD * max(1, sum(client.nthreads().values()))
        return np.concatenate([losses for _, losses in windowed(client, DOING, rows, submit, n_ahead)])


def _alone(work: Callable[[np.ndarray], np.ndarray], row: np.ndarray) -> np.ndarray:
    """One thread, so that a row comes to the same whatever else the machine does."""
    torch.set_num_threads(1)
    return work(row)
