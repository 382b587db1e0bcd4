"""Is a game to be trusted for a model: what it predicts against what the model is measured to do."""

from dataclasses import dataclass
from typing import Any

from dataworth.storage.spelling import setting
from dataworth.tasks.training.reach import REACH

__all__ = ["SumsCheck"]

# Of their size, by which the expansion may miss the measured changes of loss.
MAX_MISSED = 0.5


@dataclass(frozen=True)
class SumsCheck:
    """Predicted against measured losses, summed over the queries, nats.

    Args:
        everybody: measured at theta*.
        nobody: measured at the parameters the game gives nobody.
        base: measured of the base; None where none is known.
        missed: root mean square of (predicted - measured) over that of the measured changes, leaving single sources
            out.
    """

    everybody: float
    nobody: float
    base: float | None
    missed: float

    @property
    def reach(self) -> float | None:
        """Part of the way from theta* to the base that the tracked and projected parameters cover, in loss."""
        if self.base is None:
            return None
        way = self.base - self.everybody
        return (self.nobody - self.everybody) / way if way > 0 else float("nan")

    @property
    def reason(self) -> str:
        """Why it is not reliable; empty where it is."""
        if self.reach is not None and not REACH[0] <= self.reach <= REACH[1]:
            return (
                f"the projected parameters cover {self.reach:.0%} of the way back to the base: track more layers or "
                f"raise {setting('projection.rank')}"
            )
        if not self.missed <= MAX_MISSED:
            return f"predicted changes of loss miss the measured ones by {self.missed:.0%}"
        return ""

    @property
    def reliable(self) -> bool:
        return not self.reason

    def facts(self) -> dict[str, Any]:
        """What is printed beside the values."""
        facts = {
            "v(all)": -self.everybody,
            "v(none)": -self.nobody,
            "missed": self.missed,
            "reliable": self.reliable,
        }
        return facts if self.base is None else facts | {"v(none), measured": -self.base, "reach": self.reach}

    def sentences(self) -> list[str]:
        """For a log."""
        lines = [f"loss of all queries: {self.everybody:.4g} nats with every source, {self.nobody:.4g} with none"]
        if self.base is not None:
            lines[0] += f"; the base has {self.base:.4g}"
        lines.append(f"without single sources, predicted changes miss the measured ones by {self.missed:.0%}")
        return lines
