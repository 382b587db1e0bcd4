"""The base of all configurations: frozen, closed to unknown fields, light to import."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Configuration"]


class Configuration(BaseModel):
    """A stage's parameters. The CLI, the UI's form, MLflow's params and store attributes are generated from these."""

    model_config = ConfigDict(frozen=True, extra="forbid")
