"""Sums of sources by group of documents, for the jackknife (see uncertainty/jackknife.py)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dataworth.tasks.coalitions.games.newton_steps import LayerSums
from dataworth.tasks.coalitions.uncertainty.jackknife import replicate_scales

__all__ = ["SourceGroups"]


@dataclass(frozen=True)
class SourceGroups:
    """The sums of sources by group of documents, of which only one group is in memory at a time.

    Args:
        counts: (n_sources, G) windows whose gradients were summed.
        curvature_counts: (n_sources, G) windows whose curvature was; fewer where it was fitted on a share.
        whole: sums over all groups.
        of_group: from a group's number to its sums.
        matched: endpoint matching; as it is where no base is known.
    """

    counts: np.ndarray
    curvature_counts: np.ndarray
    whole: Sequence[LayerSums]
    of_group: Callable[[int], Sequence[LayerSums]]
    matched: Callable[[Sequence[LayerSums]], list[LayerSums]]

    @property
    def n_groups(self) -> int:
        return self.counts.shape[1]

    def replicate(self, number: int) -> list[LayerSums]:
        """Endpoint-matched sums by layer had a group of documents been left out of every source."""
        of_gradients, of_curvatures = (replicate_scales(each) for each in (self.counts, self.curvature_counts))
        kept, dropped = (scales[number][:, None] for scales in of_gradients)
        kept_curvature, dropped_curvature = (scales[number][:, None, None] for scales in of_curvatures)
        return self.matched(
            [
                LayerSums(
                    kept * layer.gradients - dropped * group.gradients,
                    kept_curvature * layer.curvatures - dropped_curvature * group.curvatures,
                )
                for layer, group in zip(self.whole, self.of_group(number), strict=True)
            ]
        )
