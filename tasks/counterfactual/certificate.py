"""Removals predicted beside removals measured: how far the scores of a valuation are to be believed on this model.

A removal takes documents away from the training; measured is what the loss of the queries gains when the base is
trained again without them, predicted is the sum of their scores. Two things stand between them: scores are often too
small or too large by a factor, and without some documents the training has fewer steps, whatever they say:

    measured = factor * predicted + per_token * tokens removed + missed

by least squares. What is missed, where each removal is predicted by the others, gives an interval for a further removal
of their kind (the jackknife's quantile, which drawn removals bear out; it has no guarantee of its own: Barber et al.
2021, arXiv 1905.02928). Whether scores tell more than sizes is tested by exchanging the removals' predictions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
# Fewer removals say nothing; predictions that do as well by exchange more often than this are no better than chance.
LEAST, CHANCE, EXCHANGES = 4, 0.05, 999
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
    """The source of the largest sum, then in turn the best documents of a query and as many documents at random.

    A smaller count gives the first ones of a larger, so that their trainings are known. Once every query has had its
    turn, the rest is at random.

    Args:
        scores: of every query and document.
        sources: of each document.
        queries: their ids; whose turn it is, is drawn.
        count: of removals.
        seed: of what is drawn.
    """
    n = scores.shape[1]
    size = max(1, round(PART * n))
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
    asked = np.random.default_rng(seed).permutation(len(scores)).tolist()
    while len(masks) < count:
        if asked and kinds[-1:] != [BEST]:
            query = asked.pop(0)
            add(np.argsort(-scores[query], kind="stable")[:size], BEST, str(queries[query]))
        else:
            add(np.random.default_rng((seed, len(masks))).choice(n, size, replace=False), RANDOM, "")
    return Removals(np.array(masks[:count]), kinds[:count], labels[:count])


@dataclass(frozen=True)
class Certificate:
    """What removals say of a valuation.

    Args:
        predicted, measured: (R, q) nats that each query's loss gains.
        tokens: (R,) that were removed.
        confidence: of the intervals.
        kinds, names: of the removals.
        reason: why training again does not lead to the model; empty where it does.
    """

    predicted: np.ndarray
    measured: np.ndarray
    tokens: np.ndarray
    confidence: float = CONFIDENCE
    kinds: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    reason: str = ""

    @classmethod
    def open(cls, ref: StoreRef, confidence: float = CONFIDENCE) -> "Certificate":
        """From what the step `certify` left."""
        store = LayerStore.open(ref)
        predicted, measured = (store.matrix("scores", name) for name in ("predicted", "measured"))
        said = store.attributes
        tokens = np.array(said["tokens"], np.float64)
        return cls(predicted, measured, tokens, confidence, said["kinds"], said["names"], said["reason"])

    @property
    def factor(self) -> float:
        """What predictions are multiplied by."""
        return float(_fitted(self._features, self.measured)[0])

    @property
    def per_token(self) -> float:
        """Nats of each query that every removed token adds, whatever it says: of the steps that are not made."""
        return float(_fitted(self._features, self.measured)[1])

    @cached_property
    def missed(self) -> Float[np.ndarray, "R q"]:
        """Measured less what the other removals make of the prediction and the size."""
        return self._missed(self._features)

    @property
    def within(self) -> float | None:
        """Half the interval of a removal's effect on all queries, nats a query; None where removals are too few."""
        missed = np.sort(np.abs(self.missed.mean(axis=1)))
        rank = ceil((len(missed) + 1) * self.confidence - 1e-9)
        return None if rank > len(missed) else float(missed[rank - 1])

    @property
    def within_query(self) -> float | None:
        """Half the interval of a removal's effect on one query, nats; None where removals are too few.

        Queries of one removal are missed together, so that the removals are counted, not the pairs.
        """
        missed = np.sort(np.abs(self.missed), axis=None)
        rank = ceil((len(self.missed) + 1) * self.confidence - 1e-9) / len(self.missed)
        return None if rank > 1 else float(missed[ceil(rank * len(missed)) - 1])

    @property
    def explained_by_size(self) -> float:
        """Part of the squared effects that the tokens removed explain alone."""
        return self._explained(self._missed(self._features[:, :, 1:]), self.measured)

    @property
    def explained(self) -> float:
        """Part of what sizes leave that predictions explain; 0 or less: they tell nothing more."""
        return self._explained(self.missed, self._missed(self._features[:, :, 1:]))

    @cached_property
    def by_chance(self) -> float:
        """How often predictions that are exchanged between the removals explain as much: a p value."""
        generator = np.random.default_rng(0)
        own = float((self.missed**2).sum())
        better = 0
        for _ in range(EXCHANGES):
            features = self._features.copy()
            features[:, :, 0] = features[generator.permutation(len(features)), :, 0]
            better += float((self._missed(features) ** 2).sum()) <= own
        return (1 + better) / (1 + EXCHANGES)

    @property
    def correlation(self) -> float:
        """Rank correlation of predicted and measured over removals and queries; NaN where either never differs."""
        one, two = self.predicted.ravel(), self.measured.ravel()
        return float(spearmanr(one, two).statistic) if np.ptp(one) and np.ptp(two) else float("nan")

    @property
    def believed(self) -> bool:
        """The scores tell more of the removals than their sizes do, and not by chance."""
        return self.factor > 0 and self.explained > 0 and self.by_chance <= CHANCE

    @property
    def verdict(self) -> str:
        """A few sentences."""
        if self.reason:
            return f"The certificate is of another model: {self.reason}. {self._verdict}"
        return self._verdict

    def calibrated(self, scores: Float[np.ndarray, " n"], tokens: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """What sums of scores of some documents come to when they are measured, nats of the same queries.

        Args:
            scores: of one query, or its mean over the queries.
            tokens: of the documents.
        """
        return np.asarray(self.factor * scores + self.per_token * tokens)

    @property
    def _verdict(self) -> str:
        n = len(self.predicted)
        if n < LEAST:
            return f"{n} removals were measured, which say nothing of others: certify with at least {LEAST}."
        sizes = f"The tokens removed explain {max(self.explained_by_size, 0.0):.0%} of what {n} removals came to"
        if not self.believed:
            return (
                f"On this model the scores did not tell what removing documents does. {sizes}; of the rest the scores "
                "explain nothing that chance would not. Do not pay by scores."
            )
        told = f"{sizes}; of the rest the scores explain {self.explained:.0%} (rank correlation {self.correlation:.2f})"
        if self.within is None:
            needed = ceil(self.confidence / (1 - self.confidence) - 1e-9)
            return f"{told}. For an interval of {self.confidence:.0%} {needed} removals are needed."
        return (
            f"On this model removals were predicted to within {self.within:.3g} nats a query ({self.confidence:.0%} of "
            f"them). {told}."
        )

    def facts(self) -> dict[str, Any]:
        """As it is kept beside the values."""
        facts: dict[str, Any] = {
            "verdict": self.verdict,
            "believed": self.believed,
            "removals": len(self.predicted),
            "confidence": self.confidence,
            "factor": self.factor,
            "nats per token": self.per_token,
            "within": self.within,
            "within of a query": self.within_query,
            "explained by size": self.explained_by_size,
            "explained": self.explained,
            "by chance": self.by_chance,
            "rank correlation": self.correlation,
        }
        return {name: None if value != value else value for name, value in facts.items()}  # JSON has no NaN

    @property
    def _features(self) -> Float[np.ndarray, "R q 2"]:
        sizes = np.broadcast_to(self.tokens[:, None], self.predicted.shape)
        return np.stack([self.predicted, sizes], axis=2)

    def _missed(self, features: np.ndarray) -> np.ndarray:
        grams = np.einsum("rqj,rqk->rjk", features, features)
        targets = np.einsum("rqj,rq->rj", features, self.measured)
        weights = np.stack(
            [
                _solved(grams.sum(axis=0) - own, targets.sum(axis=0) - part)
                for own, part in zip(grams, targets, strict=True)
            ]
        )
        return np.asarray(self.measured - np.einsum("rqj,rj->rq", features, weights))

    @staticmethod
    def _explained(missed: np.ndarray, whole: np.ndarray) -> float:
        squares = float((whole**2).sum())
        return 1.0 - float((missed**2).sum()) / squares if squares > 0 else 0.0


def _fitted(features: np.ndarray, measured: np.ndarray) -> np.ndarray:
    return _solved(np.einsum("rqj,rqk->jk", features, features), np.einsum("rqj,rq->j", features, measured))


def _solved(gram: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares in the columns' own units; a column of zeros gets nothing."""
    scales = np.sqrt(np.diag(gram))
    safe = np.where(scales > 0, scales, 1.0)
    return np.asarray(np.linalg.lstsq(gram / np.outer(safe, safe), target / safe, rcond=1e-9)[0] / safe)


def predicted_effects(scores: Float[np.ndarray, "q n"], masks: Bool[np.ndarray, "R n"]) -> Float[np.ndarray, "R q"]:
    """Sums of the scores of what is removed."""
    return masks.astype(np.float64) @ scores.astype(np.float64).T
