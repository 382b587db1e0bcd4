"""Parameters of scoring."""

from typing import Any, Literal

from pydantic import Field

from dataworth.tasks.configuration import Configuration

__all__ = ["ScoringConfig"]


class ScoringConfig(Configuration):
    """What is computed for every pair of query and document."""

    kind: Literal["dot", "relative", "cosine"] = Field(
        "dot",
        description="dot: influence; relative: divided by the root of the window's self-influence; cosine: by both.",
    )
    top_k: int = Field(20, ge=1, le=10_000, description="Documents kept for each query.")
    save_matrix: bool = Field(False, description="Also write every score to scores.zarr.")
    by_layer: bool = Field(False, description="Also keep each layer's part of the kept documents' scores.")
    tokens: int = Field(
        3,
        ge=0,
        le=100,
        description="Best passages of each query (of 100 queries at most, and of all together) of which it is told "
        "which tokens taught, and which of the answer; as dot, without routed layers; 0: of none.",
    )
    layers: list[str] = Field(
        default_factory=list, description="Count only layers whose name matches one of these patterns (* and ?)."
    )
    sources: list[str] = Field(
        default_factory=list, description="Score only sources whose name matches one of these patterns."
    )
    without_sources: list[str] = Field(
        default_factory=list, description="Leave out sources whose name matches one of these patterns."
    )

    @property
    def of_scores(self) -> dict[str, Any]:
        """What decides scores and what is kept of them."""
        return self.model_dump(exclude={"tokens"})
