"""Parameters of fitting and damping the curvature."""

from typing import Literal

from pydantic import Field

from dataworth.tasks.configuration import Configuration

__all__ = ["CurvatureConfig", "DampingConfig"]


class DampingConfig(Configuration):
    """The lambda of (H + lambda I)^-1, chosen per layer."""

    rule: Literal["relative", "absolute"] = Field(
        "relative",
        description="relative: value times the mean of the eigenvalues that carry mass; absolute: value itself.",
    )
    value: float = Field(0.1, gt=0, le=1e12, description="Ratio or absolute damping.")


class CurvatureConfig(Configuration):
    """The Hessian of the training loss in the projected space. Labels, draws, fraction and seed also make pca bases."""

    kind: Literal["none", "fisher", "kfac", "ekfac"] = Field(
        "fisher",
        description="none: plain gradient dot product; fisher: mean of g g^T per layer, dense; kfac: Kronecker product "
        "of the covariances of inputs and output gradients; ekfac: their eigenvectors, with eigenvalues of their own.",
    )
    labels: Literal["sampled", "empirical", "exact"] = Field(
        "sampled",
        description="Labels of the curvature's gradients: drawn from the model, the data's own, or (classifiers) every "
        "class with its probability.",
    )
    draws: int = Field(4, ge=1, le=64, description="Label draws for an example (sampled labels).")
    low_rank: int = Field(
        256,
        ge=1,
        le=4096,
        description="Rank of the Fisher (beside a diagonal) of layers that keep more than 4096 columns.",
    )
    fraction: float = Field(1.0, gt=0, le=1, description="Share of the corpus' documents the curvature is fitted on.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the label draws and of the choice of documents.")
    damping: DampingConfig = Field(default_factory=DampingConfig, description="Damping of the inverse.")
