"""Does the recipe of a training lead to the model that is valued?"""

from dataclasses import dataclass
from typing import Any

from dataworth.storage.spelling import setting

__all__ = ["REACH", "RetrainedCheck"]

# Parts of the way from the base to the model, in loss: neither less than half, nor half as far again.
REACH = (0.5, 1.5)


@dataclass(frozen=True)
class RetrainedCheck:
    """Does training on everything, as it is done for coalitions, lead to the model that is valued?

    Args:
        everybody: measured at theta*, nats summed over the queries.
        retrained: after training on everything.
        base: measured of the base.
    """

    everybody: float
    retrained: float
    base: float

    @property
    def reach(self) -> float:
        """Part of the way from the base to theta*, in loss, that training on everything goes."""
        way = self.base - self.everybody
        return (self.base - self.retrained) / way if way > 0 else float("nan")

    @property
    def reason(self) -> str:
        """Why it is not reliable; empty where it is."""
        if REACH[0] <= self.reach <= REACH[1]:
            return ""
        return (
            f"training on everything goes {self.reach:.0%} of the way from the base to the model: set "
            f"{setting('training')}"
        )

    @property
    def reliable(self) -> bool:
        return not self.reason

    def facts(self) -> dict[str, Any]:
        """What is printed beside the values."""
        return {
            "v(all)": -self.retrained,
            "v(none)": -self.base,
            "v(all), of the model": -self.everybody,
            "reach": self.reach,
            "reliable": self.reliable,
        }

    def sentences(self) -> list[str]:
        """For a log."""
        return [
            f"loss of all queries: {self.everybody:.4g} nats of the model, {self.retrained:.4g} trained again on "
            f"everything, {self.base:.4g} of the base"
        ]
