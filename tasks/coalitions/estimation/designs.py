"""Designs: which coalitions of sources are asked for."""

import numpy as np
from jaxtyping import Bool, Float

from dataworth.tasks.coalitions.estimation.semivalues import size_chances

__all__ = [
    "Coalitions",
    "all_coalitions",
    "antithetic_permutations",
    "leave_one_out",
    "paired_by_chances",
    "paired_chances",
    "paired_in_strata",
    "prefixes",
]

GOLDEN = (np.sqrt(5) - 1) / 2
# Players take part or not, or each to a degree from 0 to 1.
Coalitions = Bool[np.ndarray, "m s"] | Float[np.ndarray, "m s"]


def all_coalitions(n_players: int) -> Bool[np.ndarray, "m s"]:
    """All 2^n coalitions, each differing from the one before in a single player (Gray code)."""
    numbers = np.arange(2**n_players)
    gray = numbers ^ (numbers >> 1)
    return (gray[:, None] >> np.arange(n_players)) & 1 == 1


def leave_one_out(n_players: int) -> Bool[np.ndarray, "m s"]:
    """Everybody, then everybody but each player in turn."""
    return np.concatenate([np.ones((1, n_players), bool), ~np.eye(n_players, dtype=bool)])


def _prefixes(order: np.ndarray) -> np.ndarray:
    """(n + 1, n) coalitions that grow by one player of the order at a time, from nobody to everybody."""
    ranks = np.argsort(order)
    return ranks[None, :] < np.arange(len(order) + 1)[:, None]


def antithetic_permutations(n_players: int, pairs: int, generator: np.random.Generator) -> np.ndarray:
    """(pairs, 2, n) random orders of the players, each followed by its reverse.

    Source: Mitchell et al. 2022 (arXiv 2104.12199), section 4.
    """
    orders = np.stack([generator.permutation(n_players) for _ in range(pairs)]).reshape(pairs, n_players)
    return np.stack([orders, orders[:, ::-1]], axis=1)


def prefixes(orders: np.ndarray) -> Bool[np.ndarray, "m s"]:
    """The coalitions along some orders, n + 1 an order."""
    return np.concatenate([_prefixes(order) for order in orders.reshape(-1, orders.shape[-1])])


def paired_chances(weights: Float[np.ndarray, " s"]) -> Float[np.ndarray, " k"]:
    """Chances of the sizes 1 … n - 1 for estimators that let every coalition count in every player's value.

    r(j) is proportional to the root of the mean over players of a coalition's squared coefficient, which has the least
    variance were all utilities equally spread, averaged with r(n - j) as complements come along. For Shapley it is
    proportional to 1 / sqrt(j (n - j)).

    Args:
        weights: of the semivalue (see `size_weights`).
    """
    n = len(weights)
    sizes = np.arange(1, n)
    chances = size_chances(weights)
    spread = np.sqrt(chances[:-1] ** 2 / sizes + chances[1:] ** 2 / (n - sizes))
    return (spread + spread[::-1]) / (2 * spread.sum())


def paired_by_chances(
    n_players: int, pairs: int, chances: Float[np.ndarray, " k"], generator: np.random.Generator
) -> Bool[np.ndarray, "m s"]:
    """Coalitions of sizes 1 … n - 1 drawn with these chances, each followed by its complement."""
    return _paired(generator.choice(np.arange(1, n_players), pairs, p=chances), n_players, generator)


def paired_in_strata(
    n_players: int, pairs: int, chances: Float[np.ndarray, " k"], generator: np.random.Generator
) -> Bool[np.ndarray, "m s"]:
    """As `paired_by_chances`, but sizes come evenly, by a golden-ratio sequence from a random place.

    More pairs by the same seed begin with the same ones.
    """
    places = (generator.random() + GOLDEN * np.arange(pairs)) % 1.0
    return _paired(1 + np.minimum(np.searchsorted(np.cumsum(chances), places), n_players - 2), n_players, generator)


def _paired(sizes: np.ndarray, n_players: int, generator: np.random.Generator) -> np.ndarray:
    ranks = generator.random((len(sizes), n_players)).argsort(axis=1).argsort(axis=1)
    masks = ranks < sizes[:, None]
    return np.stack([masks, ~masks], axis=1).reshape(2 * len(sizes), n_players)
