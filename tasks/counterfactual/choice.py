"""Choosing rank, curvature and damping: what is tried, and which of it does best where it is not reported."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.projection.config import ProjectionConfig

__all__ = ["Candidate", "Family", "families"]

# A dense Fisher of more columns than there are labels is noise; EK-FAC takes any rank.
RANKS = {"fisher": (8, 16, 32), "ekfac": (8, 16, 32, 64, 128, 256)}
# Of the mean eigenvalue that carries mass: of a dense Fisher the best ones measured were 0.03 to 3, of EK-FAC less.
RATIOS = (0.001, 0.01, 0.1, 1.0, 10.0)
# Of the weight decay of training.
MULTIPLES = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Family:
    """Settings that one fit serves: they differ in damping alone.

    Args:
        projection, curvature: of LoGra.
        dampings: one after another.
    """

    projection: ProjectionConfig
    curvature: CurvatureConfig
    dampings: tuple[DampingConfig, ...]

    def candidates(self) -> Iterator["Candidate"]:
        """One for each damping."""
        for damping in self.dampings:
            yield Candidate(self.projection, self.curvature.model_copy(update={"damping": damping}))


@dataclass(frozen=True)
class Candidate:
    """Settings of LoGra."""

    projection: ProjectionConfig
    curvature: CurvatureConfig

    def described(self) -> dict[str, Any]:
        """In the words of a configuration; what is at its default is left out."""
        return {
            "projection": self.projection.model_dump(mode="json", exclude_defaults=True),
            "curvature": self.curvature.model_dump(mode="json", exclude_defaults=True),
        }


def families(
    projection: ProjectionConfig, curvature: CurvatureConfig, weight_decay: float | None, sides: Sequence[int]
) -> list[Family]:
    """What is tried: PCA bases of several ranks, dense Fisher and EK-FAC, and several dampings.

    Args:
        projection: seeds; its rank is tried, too.
        curvature: labels, draws and seed.
        weight_decay: of the mean loss over examples, where training had one: its multiples are tried as dampings.
        sides: sizes of the layers' sides; ranks beyond the largest are all the same.
    """
    dampings = [DampingConfig(rule="relative", value=value) for value in RATIOS]
    if weight_decay:
        dampings += [DampingConfig(rule="absolute", value=weight_decay * value) for value in MULTIPLES]
    return [
        Family(
            projection.model_copy(update={"kind": "pca", "rank": rank}),
            curvature.model_copy(update={"kind": kind}),
            tuple(dampings),
        )
        for kind, ranks in RANKS.items()
        for rank in sorted({min(rank, max(sides)) for rank in (*ranks, projection.rank)})
    ]
