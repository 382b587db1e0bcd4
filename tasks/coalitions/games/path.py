"""The path game: a source's marginal contribution while the whole corpus grows from nothing (see path_values)."""

from typing import Any

import numpy as np
from jaxtyping import Float

from dataworth.tasks.coalitions.games.document_values import path_document_values
from dataworth.tasks.coalitions.games.path_values import path_values
from dataworth.tasks.coalitions.games.source_game import Game, Material
from dataworth.tasks.coalitions.games.sums_game import SumsGame

__all__ = ["Path"]


class Path(SumsGame):
    """Always in closed form: it is an average along a path, and asks no coalition."""

    def closed_form(self) -> Float[np.ndarray, "q s"]:
        """16 damped solves."""
        sums = self.play.sums
        return path_values(sums.layers, sums.damping, self.play.expansion, portions=self.play.portions)

    def expanded(self) -> Game:
        """There are none to ask."""
        raise NotImplementedError("the path game has no coalitions")

    def surrogate(self) -> None:
        """Its values alone."""

    def documents(self, material: Material) -> list[dict[str, Any]] | None:
        """What every document is worth along the path."""
        if not material.sources.document_values:
            return None
        players = material.players
        return path_document_values(self.play, material.needed, players.grouping, players.names)
