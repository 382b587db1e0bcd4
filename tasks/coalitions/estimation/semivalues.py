"""Semivalues: how a coalition's utility is divided among its members, from marginal contributions weighted by size.

phi_i = sum over coalitions C without i of w(|C|) (v(C + i) - v(C)), with sum over k of binomial(n - 1, k) w(k) = 1.
Sources: Dubey, Neyman & Weber 1981 (semivalues); Shapley 1953; Wang & Jia 2023 (arXiv 2205.15466, Banzhaf);
Kwon & Zou 2022 (arXiv 2110.14049, Beta Shapley).
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import betaln, gammaln

__all__ = ["SemivalueName", "coefficients", "exact_semivalues", "size_chances", "size_weights"]

SemivalueName = Literal["shapley", "banzhaf", "beta", "leave_one_out"]


def size_weights(n_players: int, semivalue: SemivalueName, alpha: float = 1.0, beta: float = 1.0) -> np.ndarray:
    """(n_players,) w(k), the weight of one marginal contribution to a coalition of k = 0 … n - 1 other players.

    Args:
        n_players: at least 1.
        semivalue: `beta` takes alpha and beta; beta(1, 1) is Shapley's, a larger alpha weighs small coalitions more.
        alpha, beta: of Beta Shapley, positive.
    """
    k = np.arange(n_players)
    if semivalue == "leave_one_out":
        return (k == n_players - 1).astype(np.float64)
    if semivalue == "banzhaf":
        return np.full(n_players, 0.5 ** (n_players - 1))
    if semivalue == "shapley":
        return np.exp(gammaln(k + 1) + gammaln(n_players - k) - gammaln(n_players + 1))
    return np.asarray(np.exp(betaln(k + beta, n_players - 1 - k + alpha) - betaln(alpha, beta)))


def coefficients(masks: Bool[np.ndarray, "m s"], weights: Float[np.ndarray, " s"]) -> Float[np.ndarray, "m s"]:
    """What each coalition's utility counts in each player's value: w(|C| - 1) for its members, -w(|C|) for others."""
    sizes = masks.sum(axis=1)
    joined = np.where(sizes > 0, weights[np.maximum(sizes - 1, 0)], 0.0)
    apart = np.where(sizes < masks.shape[1], weights[np.minimum(sizes, masks.shape[1] - 1)], 0.0)
    return np.where(masks, joined[:, None], -apart[:, None])


def exact_semivalues(
    masks: Bool[np.ndarray, "m s"], utilities: Float[np.ndarray, "m q"], weights: Float[np.ndarray, " s"]
) -> Float[np.ndarray, "q s"]:
    """The values of every player from the utilities of all 2^n coalitions.

    Args:
        masks: every coalition once, in any order.
        utilities: the utility of each, for every query.
        weights: of the semivalue (see `size_weights`).

    Raises:
        ValueError: a coalition is missing.
    """
    if len(masks) != 2 ** masks.shape[1]:
        raise ValueError(f"{masks.shape[1]} players have {2 ** masks.shape[1]} coalitions, got {len(masks)}")
    return utilities.T @ coefficients(masks, weights)


def size_chances(weights: Float[np.ndarray, " s"]) -> Float[np.ndarray, " s"]:
    """How much of a semivalue rests on coalitions of k = 0 … n - 1 others: binomial(n - 1, k) w(k).

    Raises:
        ValueError: they do not add up to 1, as weights of a semivalue do unless more than a thousand players make them
            too small for float64.
    """
    n = len(weights)
    k = np.arange(n)
    with np.errstate(divide="ignore"):
        chances = np.exp(gammaln(n) - gammaln(k + 1) - gammaln(n - k) + np.log(weights))
    if not np.isclose(chances.sum(), 1.0, rtol=1e-6):
        raise ValueError(
            f"a semivalue's weights times binomial(n - 1, k) add up to 1, got {chances.sum()} for {n} players"
        )
    return np.asarray(chances)
