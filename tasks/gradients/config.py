"""Parameters of indexing a corpus."""

from typing import Literal

from pydantic import Field

from dataworth.tasks.configuration import Configuration

__all__ = ["GradientsConfig"]


class GradientsConfig(Configuration):
    """How gradients are computed in batches and stored."""

    keep: Literal["rows", "none"] = Field(
        "rows",
        description="rows: projected gradients, for any queries to come; none: the queries come first, and one pass "
        "over the corpus keeps its scores for them alone, so that whole gradients (--projection.kind identity) take no "
        "room.",
    )
    query_error: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Of keep none: what a query's scores may lose, at most and in the root mean square, where fewer "
        "coordinates a side tell them for less work, such as 0.1 for many queries or a large corpus; 0: nothing.",
    )
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

    @property
    def row_dtype(self) -> Literal["float16", "bfloat16", "float32", "int8"]:
        """Data type of what is stored: scores are few."""
        return "float32" if self.keep == "none" else self.dtype
