"""Parameters of logging a valuation."""

from typing import Annotated

from pydantic import Field, field_validator

from dataworth.tasks.configuration import Configuration, Names
from dataworth.tasks.visible import refuse_password

__all__ = ["TrackingConfig"]


class TrackingConfig(Configuration):
    """Where MLflow keeps the run."""

    uri: Annotated[str | None, Names.ADDRESS] = Field(
        None, description="MLflow tracking URI; default: $MLFLOW_TRACKING_URI, else SQLite in $DATAWORTH_HOME/mlflow."
    )
    experiment: str | None = Field(
        None, min_length=1, max_length=250, description="Name of the MLflow experiment; default: that of the series."
    )
    series: str | None = Field(
        None,
        min_length=1,
        max_length=250,
        description="Valuations whose shares over time are one chart; default: those of the same model and corpus.",
    )

    @field_validator("uri")
    @classmethod
    def _tells_no_password(cls, uri: str | None) -> str | None:
        return refuse_password(uri, "MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
