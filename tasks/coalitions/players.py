"""The players of a game: sources of a scoring pass, with the sums of their scores."""

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Players"]


@dataclass(frozen=True)
class Players:
    """Sources and queries of a scoring pass.

    Args:
        query_ids: the last is of all queries together.
        names: of the sources.
        grouping: who a source is.
        table: rows of SOURCE_SUMS of dataworth.storage.schema, by query, then source.
    """

    query_ids: list[str]
    names: list[str]
    grouping: str
    table: Any

    def column(self, name: str) -> np.ndarray:
        """(n_queries + 1, n_sources) of a column of the sums."""
        column: np.ndarray = self.table[name].to_numpy().reshape(len(self.query_ids), len(self.names))
        return column
