"""Designs: which coalitions of sources are asked for."""

import numpy as np
from jaxtyping import Bool, Float

from dataworth.tasks.coalitions.estimation.semivalues import size_chances

__all__ = [
    "Coalitions",
    "all_coalitions",
    "antithetic_permutations",
    "coalition_rows",
    "firsts_and_lasts",
    "leave_one_out",
    "paired_by_chances",
    "paired_chances",
    "paired_in_strata",
    "prefixes",
    "without_repetition",
]

GOLDEN = (np.sqrt(5) - 1) / 2
# Players take part or not, or each to a degree from 0 to 1.
Coalitions = Bool[np.ndarray, "m s"] | Float[np.ndarray, "m s"]


def all_coalitions(n_players: int) -> Bool[np.ndarray, "m s"]:
    """All 2^n coalitions, each differing from the one before in a single player (Gray code)."""
    numbers = np.arange(2**n_players)
    gray = numbers ^ (numbers >> 1)
    return (gray[:, None] >> np.arange(n_players)) & 1 == 1


def coalition_rows(masks: Bool[np.ndarray, "m s"]) -> np.ndarray:
    """(m,) rows of `all_coalitions` that these are: the Gray code of a coalition's bits tells its row.

    Raises:
        ValueError: of more players than an integer has bits.
    """
    if masks.shape[1] > 62:
        raise ValueError(f"the coalitions of {masks.shape[1]} players have no numbers")
    gray = masks @ (1 << np.arange(masks.shape[1]))
    rows: np.ndarray = gray.copy()
    for shift in range(1, masks.shape[1]):
        rows ^= gray >> shift
    return rows


def leave_one_out(n_players: int) -> Bool[np.ndarray, "m s"]:
    """Everybody, then everybody but each player in turn."""
    return np.concatenate([np.ones((1, n_players), bool), ~np.eye(n_players, dtype=bool)])


def firsts_and_lasts(sizes: Float[np.ndarray, " s"]) -> Bool[np.ndarray, "m s"]:
    """Everybody but each player in turn, then each player alone, larger ones first; each coalition once.

    Args:
        sizes: of at least 2 players.
    """
    n_players = len(sizes)
    alone = np.eye(n_players, dtype=bool)[np.argsort(-sizes, kind="stable")]
    found = np.concatenate([leave_one_out(n_players)[1:], alone])
    _, rows = np.unique(coalition_rows(found), return_index=True)
    return found[np.sort(rows)]


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


def without_repetition(
    n_players: int, known: Bool[np.ndarray, "k s"], number: int, generator: np.random.Generator
) -> Bool[np.ndarray, "m s"]:
    """Coalitions that are not known yet, each followed by its complement where that is not known either.

    Sizes j have chances proportional to 1 / sqrt(j (n - j)). Some more by the same seed begin with the same ones.

    Args:
        n_players: s.
        known: not to be drawn.
        number: m, or what is left of all.
        generator: of the draws.
    """
    sizes = np.arange(1, n_players)
    chances = 1 / np.sqrt(sizes * (n_players - sizes))
    seen: set[int] = set(coalition_rows(known).tolist())
    found: list[np.ndarray] = []
    number = min(number, 2**n_players - len(seen))
    while len(found) < number:
        for mask in paired_by_chances(n_players, 1, chances / chances.sum(), generator):
            (row,) = coalition_rows(mask[None]).tolist()
            if row not in seen:
                seen.add(row)
                found.append(mask)
    return np.array(found[:number], bool).reshape(-1, n_players)


def _paired(sizes: np.ndarray, n_players: int, generator: np.random.Generator) -> np.ndarray:
    ranks = generator.random((len(sizes), n_players)).argsort(axis=1).argsort(axis=1)
    masks = ranks < sizes[:, None]
    return np.stack([masks, ~masks], axis=1).reshape(2 * len(sizes), n_players)
