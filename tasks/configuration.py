"""The base of all configurations: frozen, closed to unknown fields, light to import; and what several rooms take."""

from enum import Enum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dataworth.storage.spelling import setting
from dataworth.tasks.visible import refuse_password

__all__ = ["ClusterConfig", "Configuration", "Names"]


class Names(Enum):
    """What a field names beside the run itself, as a mark in its annotation; `permissions` holds it to limits.

    Every field of text is marked, or is listed in that module's tests as one that names nothing.
    """

    FILE = "a file or folder that is read"
    DOCUMENTS = "a file or folder of documents, or hf: and a data set"
    MODEL = "a folder of a checkpoint, or its name on the Hugging Face hub"
    PLACE = "a folder, or one of a bucket, that is written"
    ADDRESS = "a server"
    CODE = "a function that is imported and called"


class Configuration(BaseModel):
    """A stage's parameters. The CLI, the UI's form, MLflow's params and store attributes are generated from these."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ClusterConfig(Configuration):
    """The Dask cluster; without an address a local one is begun where there is work for it, and ended with the run."""

    address: Annotated[str | None, Names.ADDRESS] = Field(
        None, description="Address of a Dask scheduler; default: $DATAWORTH_DASK, else local."
    )
    tls_ca: Annotated[str | None, Names.FILE] = Field(
        None, description="PEM file of the authority that signed the scheduler's certificate."
    )
    tls_certificate: Annotated[str | None, Names.FILE] = Field(
        None, description="PEM file of this client's certificate."
    )
    tls_key: Annotated[str | None, Names.FILE] = Field(None, description="PEM file of this client's key.")
    workers: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Worker processes of a local cluster; default: cores, none for a second of work.",
    )
    threads: int | None = Field(None, ge=1, le=1024, description="Threads of a local worker; default: 1.")
    processes: bool = Field(
        True,
        description="Local workers are processes; without, one thread of this process, from a notebook the default.",
    )

    @field_validator("address")
    @classmethod
    def _tells_no_password(cls, address: str | None) -> str | None:
        return refuse_password(address, f"certificates: {setting('cluster.tls_certificate')}")
