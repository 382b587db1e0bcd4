"""Parameters of projecting gradients."""

from typing import Literal

from pydantic import Field

from tasks.configuration import Configuration

__all__ = ["ProjectionConfig"]


class ProjectionConfig(Configuration):
    """How a layer's gradient is made small on both sides."""

    kind: Literal["random", "identity"] = Field(
        "random", description="random: Gaussian bases (LoGra); identity: no projection, for small models."
    )
    rank: int = Field(16, ge=1, le=4096, description="Dimensions kept on each side of a layer.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the random bases.")
