"""The base of all configurations: frozen, closed to unknown fields, light to import; and what several rooms take."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tasks.visible import refuse_password

__all__ = ["ClusterConfig", "Configuration"]


class Configuration(BaseModel):
    """A stage's parameters. The CLI, the UI's form, MLflow's params and store attributes are generated from these."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
