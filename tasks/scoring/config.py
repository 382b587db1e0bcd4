"""Parameters of scoring and of the cluster that scores."""

from typing import Literal

from pydantic import Field, field_validator

from tasks.configuration import Configuration
from tasks.visible import refuse_password

__all__ = ["ClusterConfig", "ScoringConfig"]


class ScoringConfig(Configuration):
    """What is computed for every pair of query and document."""

    kind: Literal["dot", "relative", "cosine"] = Field(
        "dot",
        description="dot: influence; relative: divided by the root of the window's self-influence; cosine: by both.",
    )
    top_k: int = Field(20, ge=1, le=10_000, description="Documents kept for each query.")
    save_matrix: bool = Field(False, description="Also write every score to scores.zarr.")
    by_layer: bool = Field(False, description="Also keep each layer's part of the kept documents' scores.")
    layers: list[str] = Field(
        default_factory=list, description="Count only layers whose name matches one of these patterns (* and ?)."
    )
    sources: list[str] = Field(
        default_factory=list, description="Score only sources whose name matches one of these patterns."
    )
    without_sources: list[str] = Field(
        default_factory=list, description="Leave out sources whose name matches one of these patterns."
    )


class ClusterConfig(Configuration):
    """The Dask cluster; without an address a local one is started and ended with the run."""

    address: str | None = Field(None, description="Address of a Dask scheduler; default: $DATAWORTH_DASK, else local.")
    tls_ca: str | None = Field(None, description="PEM file of the authority that signed the scheduler's certificate.")
    tls_certificate: str | None = Field(None, description="PEM file of this client's certificate.")
    tls_key: str | None = Field(None, description="PEM file of this client's key.")
    workers: int | None = Field(None, ge=1, le=1024, description="Worker processes of a local cluster; default: cores.")
    threads: int | None = Field(None, ge=1, le=1024, description="Threads of a local worker; default: 1.")

    @field_validator("address")
    @classmethod
    def _tells_no_password(cls, address: str | None) -> str | None:
        return refuse_password(address, "certificates: --cluster.tls_certificate")
