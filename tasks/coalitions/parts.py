"""What a game over sources is made of."""

from typing import Any

from pydantic import BaseModel, ConfigDict, field_serializer

from dataworth.storage.ref import StoreRef
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.training.config import TrainingConfig

__all__ = ["GameParts"]


class GameParts(BaseModel):
    """What a game over sources needs beside the scores.

    Args:
        model: the checkpoint, and its base.
        base: fingerprint of the base's weights, where there is one: its folder may hold others tomorrow.
        queries, query_gradients: of the queries.
        bases: of the projection.
        sums: source → its sums of gradient and curvature.
        factors: the queries' rows of curvature.
        damping: where no pull towards the base is known.
        corpus, gradients: the documents, and theirs.
        curvature: by which the sums were made.
        training: of the games that train, which need neither sums nor factors.
        checkpoints: fingerprints of the weights of those between base and model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: ModelConfig
    base: str | None = None
    queries: StoreRef
    query_gradients: StoreRef
    bases: StoreRef
    sums: dict[str, StoreRef]
    factors: StoreRef | None
    damping: DampingConfig
    corpus: StoreRef
    gradients: StoreRef
    curvature: CurvatureConfig
    training: TrainingConfig | None = None
    checkpoints: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What results were always kept under, and checkpoints where there are some."""
        return self.model_dump(mode="json", exclude=set() if self.checkpoints else {"checkpoints"})

    @field_serializer("model", when_used="json")
    def _identity(self, model: ModelConfig) -> dict[str, Any]:
        return model.identity
