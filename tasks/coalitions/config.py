"""Parameters of valuing sources."""

from typing import Literal

from pydantic import Field

from tasks.configuration import Configuration

__all__ = ["SourcesConfig"]


class SourcesConfig(Configuration):
    """The game over sources and what is reported of it."""

    game: Literal["additive"] = Field("additive", description="additive: a source is worth the sum of its scores.")
    semivalue: Literal["shapley"] = Field(
        "shapley", description="How a coalition's worth is divided among its members."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
