"""Removals predicted beside removals measured: how far the scores of a valuation are to be believed on this model.

A removal takes documents away from the training; measured is what the loss of the queries gains when the base is
trained again without them, predicted is the sum of their scores. From both a factor (scores are often too small or too
large by one) and an interval that holds for a further removal of their kind: the quantile of what is missed where each
removal is predicted with the factor of the others (conformal prediction by leaving one out: Vovk, Gammerman & Shafer
2005; Barber et al. 2021, arXiv 1905.02928).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import spearmanr

from dataworth.storage.layers import LayerStore
from dataworth.storage.ref import StoreRef

__all__ = ["Certificate", "Removals", "predicted_effects", "removals"]

# Of the intervals.
CONFIDENCE = 0.9
# Documents of a removal that is no source, as a part of all; at least one.
PART = 0.05
SOURCE, BEST, RANDOM = "source", "best of a query", "random"


@dataclass(frozen=True)
class Removals:
    """What is taken away, one after another.

    Args:
        masks: (R, n) documents that are removed.
        kinds: what each is: a source, the best documents of a query, or documents at random.
        names: of the source or the query; empty for random ones.
    """

    masks: np.ndarray
    kinds: list[str]
    names: list[str]


def removals(
    scores: Float[np.ndarray, "q n"], sources: Sequence[str], queries: Sequence[str], count: int, seed: int
) -> Removals:
    """The source of the largest sum, then in turn the best documents of a query and as many at random.

    Args:
        scores: of every query and document.
        sources: of each document.
        queries: their ids; those whose best documents go are spread evenly over them.
        count: of removals.
        seed: of the random ones.
    """
    generator = np.random.default_rng(seed)
    n = scores.shape[1]
    size = min(max(1, round(PART * n)), n - 1)
    names, of = np.unique(np.asarray(sources), return_inverse=True)
    masks, kinds, labels = [], [], []

    def add(members: np.ndarray, kind: str, name: str) -> None:
        mask = np.zeros(n, bool)
        mask[members] = True
        masks.append(mask)
        kinds.append(kind)
        labels.append(name)

    if len(names) > 1:
        first = int(np.argmax(np.bincount(of, weights=scores.sum(axis=0))))
        add(np.flatnonzero(of == first), SOURCE, str(names[first]))
    n_best = (count - len(masks) + 1) // 2
    asked = np.unique(np.linspace(0, len(scores) - 1, max(n_best, 1)).round().astype(int)).tolist()
    while len(masks) < count:
        if asked:
            query = asked.pop(0)
            add(np.argsort(-scores[query], kind="stable")[:size], BEST, str(queries[query]))
        if len(masks) < count:
            add(generator.choice(n, size, replace=False), RANDOM, "")
    return Removals(np.array(masks), kinds, labels)


@dataclass(frozen=True)
class Certificate:
    """What removals say of a valuation.

    Args:
        predicted, measured: (R, q) nats that each query's loss gains.
        confidence: of the intervals.
        kinds, names: of the removals.
        reason: why training again does not lead to the model; empty where it does.
    """

    predicted: np.ndarray
    measured: np.ndarray
    confidence: float
    kinds: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    reason: str = ""

    @classmethod
    def open(cls, ref: StoreRef, confidence: float = CONFIDENCE) -> "Certificate":
        """From what the step `certify` left."""
        store = LayerStore.open(ref)
        predicted, measured = (store.matrix("scores", name) for name in ("predicted", "measured"))
        said = store.attributes
        return cls(predicted, measured, confidence, said["kinds"], said["names"], said["reason"])

    @property
    def factor(self) -> float:
        """What predictions are multiplied by: least squares over removals and queries, through the origin."""
        return _factor(self.predicted, self.measured)

    @property
    def missed(self) -> Float[np.ndarray, "R q"]:
        """Measured less predicted, each removal with the factor of the others."""
        others = [np.arange(len(self.predicted)) != number for number in range(len(self.predicted))]
        factors = np.array([_factor(self.predicted[rest], self.measured[rest]) for rest in others])
        return np.asarray(self.measured - factors[:, None] * self.predicted)

    @property
    def within(self) -> float | None:
        """Half the interval of a removal's effect on all queries, nats a query; None where removals are too few."""
        return _quantile(np.abs(self.missed.mean(axis=1)), self.confidence)

    @property
    def within_query(self) -> float | None:
        """Half the interval of a removal's effect on one query, nats; None where removals are too few.

        Queries of one removal are missed together, so that the removals are counted, not the pairs.
        """
        missed = np.sort(np.abs(self.missed), axis=None)
        rank = ceil((len(self.missed) + 1) * self.confidence) / len(self.missed)
        return None if rank > 1 else float(missed[ceil(rank * len(missed)) - 1])

    @property
    def explained(self) -> float:
        """Part of the squared effects that predictions explain; below 0: worse than predicting none."""
        squares = float((self.measured**2).sum())
        return 1.0 - float((self.missed**2).sum()) / squares if squares > 0 else float("nan")

    @property
    def correlation(self) -> float:
        """Rank correlation of predicted and measured over removals and queries; NaN where either never differs."""
        one, two = self.predicted.ravel(), self.measured.ravel()
        return float(spearmanr(one, two).statistic) if np.ptp(one) and np.ptp(two) else float("nan")

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.reason:
            return f"The certificate is of another model: {self.reason}. {self._verdict}"
        return self._verdict

    @property
    def _verdict(self) -> str:
        n, percent = len(self.predicted), f"{self.confidence:.0%}"
        if len(self.predicted) < 2:
            return "One removal was measured, which says nothing of others: certify with more."
        if not self.explained > 0 or not self.factor > 0:
            return (
                f"On this model the scores did not predict what removing documents does: of {n} measured removals they "
                "explain nothing. Do not pay by them."
            )
        beside = (
            f"what was measured is {self.factor:.3g} times what was predicted, and explained to {self.explained:.0%} "
            f"(rank correlation {self.correlation:.2f})"
        )
        if self.within is None:
            needed = ceil(self.confidence / (1 - self.confidence) - 1e-9)
            return f"On this model {n} removals were measured, too few for an interval ({needed} are needed): {beside}."
        return (
            f"On this model removals were predicted to within {self.within:.3g} nats a query ({percent} of them, "
            f"{n} measured): {beside}."
        )

    def facts(self) -> dict[str, Any]:
        """As it is kept beside the values."""
        return {
            "verdict": self.verdict,
            "removals": len(self.predicted),
            "confidence": self.confidence,
            "factor": self.factor,
            "within": self.within,
            "within of a query": self.within_query,
            "explained": self.explained,
            "rank correlation": self.correlation,
        }


def _factor(predicted: np.ndarray, measured: np.ndarray) -> float:
    squares = float((predicted**2).sum())
    return float((predicted * measured).sum()) / squares if squares > 0 else 0.0


def _quantile(missed: np.ndarray, confidence: float) -> float | None:
    """The smallest bound that a further one of their kind keeps with this confidence; None where they are too few."""
    rank = ceil((len(missed) + 1) * confidence - 1e-9)
    return None if rank > len(missed) else float(np.sort(missed)[rank - 1])


def predicted_effects(scores: Float[np.ndarray, "q n"], masks: Bool[np.ndarray, "R n"]) -> Float[np.ndarray, "R q"]:
    """Sums of the scores of what is removed."""
    return masks.astype(np.float64) @ scores.astype(np.float64).T
