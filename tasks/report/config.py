"""Parameters of logging a valuation."""

from pydantic import Field

from tasks.configuration import Configuration

__all__ = ["TrackingConfig"]


class TrackingConfig(Configuration):
    """Where MLflow keeps the run."""

    uri: str | None = Field(
        None, description="MLflow tracking URI; default: $MLFLOW_TRACKING_URI, else SQLite in $DATAWORTH_HOME/mlflow."
    )
    experiment: str = Field("dataworth", min_length=1, max_length=250, description="Name of the MLflow experiment.")
