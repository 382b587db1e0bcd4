"""Parameters of logging a valuation."""

from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tasks.configuration import Configuration

__all__ = ["TrackingConfig"]


class TrackingConfig(Configuration):
    """Where MLflow keeps the run."""

    uri: str | None = Field(
        None, description="MLflow tracking URI; default: $MLFLOW_TRACKING_URI, else SQLite in $DATAWORTH_HOME/mlflow."
    )
    experiment: str = Field("dataworth", min_length=1, max_length=250, description="Name of the MLflow experiment.")
    series: str | None = Field(
        None,
        min_length=1,
        max_length=250,
        description="Valuations whose shares over time are one chart; default: those of the same model and corpus.",
    )

    @field_validator("uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        if uri and has_password(uri):
            raise ValueError(
                "a password in an address would be recorded: leave it out and set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or set MLFLOW_TRACKING_URI instead"
            )
        return uri


def has_password(uri: str) -> bool:
    """Whether an address names a password."""
    return "@" in uri and urlsplit(uri).password is not None
