"""Parameters of training a model again."""

from pydantic import Field

from dataworth.tasks.configuration import Configuration

__all__ = ["TrainingConfig"]


class TrainingConfig(Configuration):
    """How a model is trained again from its base on some of the documents.

    AdamW, a rate that warms up over the first tenth of the steps and falls as a cosine, gradients clipped to norm 1,
    the mean loss over the targets of a batch.
    """

    epochs: int = Field(3, ge=1, le=1000, description="Passes over the documents.")
    batch_tokens: int = Field(2048, ge=1, le=10**7, description="Tokens of a step, padding included.")
    learning_rate: float = Field(1e-4, gt=0, le=10, description="Highest rate.")
    weight_decay: float = Field(0.0, ge=0, le=10, description="Of AdamW.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of order and dropout.")
