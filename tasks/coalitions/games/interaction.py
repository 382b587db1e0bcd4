"""The interaction game: the second-order expansion around the trained parameters."""

import numpy as np
from jaxtyping import Float

from dataworth.tasks.coalitions.games.source_game import Game
from dataworth.tasks.coalitions.games.sums_game import SumsGame

__all__ = ["Interaction"]


class Interaction(SumsGame):
    """Shapley values in closed form, other semivalues from coalitions."""

    def closed_form(self) -> Float[np.ndarray, "q s"] | None:
        """Where the semivalue is Shapley's."""
        return self.play.interaction().shapley() if self.sources.semivalue == "shapley" else None

    def expanded(self) -> Game:
        """Utilities by the expansion."""
        return self.play.interaction()
