"""Parameters of scoring and of the cluster that scores."""

from typing import Literal

from pydantic import Field

from tasks.configuration import Configuration

__all__ = ["ClusterConfig", "ScoringConfig"]


class ScoringConfig(Configuration):
    """What is computed for every pair of query and document."""

    kind: Literal["dot", "relative", "cosine"] = Field(
        "dot",
        description="dot: influence; relative: divided by the root of the window's self-influence; cosine: by both.",
    )
    top_k: int = Field(20, ge=1, le=10_000, description="Documents kept for each query.")
    save_matrix: bool = Field(False, description="Also write every score to scores.zarr.")


class ClusterConfig(Configuration):
    """The Dask cluster; without an address a local one is started and ended with the run."""

    address: str | None = Field(None, description="Address of a Dask scheduler; default: $DATAWORTH_DASK, else local.")
    workers: int | None = Field(None, ge=1, le=1024, description="Worker processes of a local cluster; default: cores.")
    threads: int | None = Field(None, ge=1, le=1024, description="Threads of a local worker; default: 1.")
