"""Parameters of indexing a corpus."""

from typing import Literal

from pydantic import Field

from dataworth.tasks.configuration import Configuration

__all__ = ["GradientsConfig"]


class GradientsConfig(Configuration):
    """How gradients are computed in batches and stored."""

    dtype: Literal["float16", "bfloat16", "float32", "int8"] = Field(
        "float16", description="Data type of the stored rows; int8 has a scale for each row and layer."
    )
    batch_tokens: int | None = Field(
        None,
        ge=2,
        le=2**24,
        description="Most tokens, padding included, of one forward and backward pass; default: what fits on a GPU, "
        "4096 on a CPU.",
    )
