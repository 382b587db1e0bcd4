"""How a model must be given several examples at once, so that each is computed as if it were alone."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Batching", "Reading"]

Batching = Literal["padded", "equal", "alone"]


@dataclass(frozen=True)
class Reading:
    """What was found out about a model (see dataworth.tasks.model.probes).

    Args:
        pad_token: id that fills shorter rows. A mask does not say all: heads that pool the last token look for it, and
            positions may be counted by it.
        batching: `padded`: examples of any lengths; `equal`: of one length, so that there is no padding; `alone`: one.
        may_idle: a layer may have no part in an example's loss, such as an expert that is sent no token.
    """

    pad_token: int = 0
    batching: Batching = "padded"
    may_idle: bool = False

    @property
    def sentence(self) -> str | None:
        """What is slower with this model, and why; None where nothing is."""
        if self.batching == "padded":
            return None
        how = "of one length" if self.batching == "equal" else "one by one"
        return f"examples are computed {how}, since in a padded batch this model computes something else"
