"""Games small enough to enumerate, and their values from the definitions."""

from itertools import combinations, permutations

import numpy as np

from dataworth.tasks.coalitions.estimation.designs import all_coalitions

KINDS = ("nearly additive", "root", "saturating", "supermodular")


def numbers(masks):
    """The binary number of each coalition."""
    return masks @ (1 << np.arange(masks.shape[1]))


def table_game(worth):
    """The game that looks its worth up, (2^n, q), by the coalition's binary number."""
    return lambda masks: worth[numbers(masks)]


def table(game, n_players):
    """(2^n, q) worth by binary number."""
    masks = all_coalitions(n_players)
    return game(masks)[np.argsort(numbers(masks))]


def drawn_game(kind, n_players, generator):
    """A random game of one query."""
    if kind == "nearly additive":
        own, noise = generator.normal(1, 1, n_players), generator.normal(0, 0.1, min(2**n_players, 4099))
        return lambda masks: (masks @ own + noise[numbers(masks) % len(noise)])[:, None]
    sizes = generator.exponential(1, n_players)
    parts = sizes / sizes.sum()
    if kind == "root":
        return lambda masks: np.sqrt(masks @ parts)[:, None]
    if kind == "saturating":
        rate = generator.uniform(2, 8)
        return lambda masks: 1 - np.exp(-rate * (masks @ parts))[:, None]
    power = generator.uniform(1.3, 3)
    return lambda masks: ((masks @ parts) ** power)[:, None]


def shapley_by_orders(worth):
    """(q, n) mean marginal contribution over all orders of the players."""
    n = int(np.log2(len(worth)))
    orders = np.array(list(permutations(range(n))))
    with_player = np.cumsum(1 << orders, axis=1)
    gains = worth[with_player] - worth[with_player - (1 << orders)]
    return np.stack([gains[orders == player].mean(axis=0) for player in range(n)], axis=1)


def values_by_subsets(worth, chance_of_joining):
    """(q, n) expected marginal contribution when every other player joins with the same chance, drawn at first.

    Args:
        chance_of_joining: pairs of a chance and its probability.
    """
    n = int(np.log2(len(worth)))
    values = np.zeros((worth.shape[1], n))
    for player in range(n):
        others = [other for other in range(n) if other != player]
        for size in range(n):
            probability = sum(weight * t**size * (1 - t) ** (n - 1 - size) for t, weight in chance_of_joining)
            for members in combinations(others, size):
                number = sum(1 << member for member in members)
                values[:, player] += probability * (worth[number | 1 << player] - worth[number])
    return values
