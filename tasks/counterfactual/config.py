"""Parameters of an audit."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from dataworth.storage.spelling import setting
from dataworth.tasks.configuration import Configuration, Names

__all__ = ["METHODS", "AuditConfig"]

# What an audit knows by name (see dataworth.tasks.attribution.methods), and BM25 on the texts.
METHODS = (
    *("recommended", "configured", "logra-random", "logra-pca", "logra-mask", "logra-factgrass", "gauss-newton"),
    *("ekfac", "kfac", "dot", "cosine", "relatif", "theta-relatif", "tracin", "trak", "datainf", "cg", "lissa"),
    *("arnoldi", "replay", "leave-one-out", "tmc-shapley", "embedding", "bm25", "size", "random"),
)


class AuditConfig(Configuration):
    """How far scores are to be trusted: what is trained again, and which methods are held against it."""

    problem: Annotated[str | None, Names.CODE] = Field(
        None,
        min_length=1,
        description="digits, demo, or MODULE:FUNCTION that returns a problem of one's own; default: the given model, "
        "corpus and queries.",
    )
    subsets: int = Field(24, ge=3, le=100_000, description="Random subsets of the documents to train on.")
    fraction: float = Field(0.5, gt=0, lt=1, description="Share of the documents in a subset.")
    seeds: int = Field(2, ge=1, le=1000, description="Trainings of each subset; from two on there is a noise ceiling.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the subsets, of random scores and of controls.")
    methods: list[str] = Field(
        default_factory=lambda: [
            *("recommended", "configured", "logra-random", "ekfac", "dot", "cosine", "relatif", "trak"),
            *("datainf", "embedding", "bm25", "size", "random"),
        ],
        description=f"Methods, of {', '.join(METHODS)}.",
    )
    leave_one_source_out: bool = Field(True, description="Also train without each source in turn.")
    removal: float = Field(0.1, ge=0, lt=1, description="Share of documents, the best of a query, to train without.")
    removal_methods: list[str] = Field(
        default_factory=lambda: ["recommended", "bm25", "random"],
        description="Methods whose best documents are removed, a training for each query and seed.",
    )
    removal_queries: int = Field(3, ge=1, le=10_000, description="Queries whose best documents are removed.")
    patch: int = Field(8, ge=0, le=10_000, description="Best documents of a query that one step is taken on; 0: none.")
    patch_queries: int = Field(8, ge=1, le=10_000, description="Queries for which such steps are taken.")
    patch_length: float = Field(1e-3, gt=0, le=1, description="Length of that step, in lengths of the weights.")
    controls: bool = Field(True, description="Also a model that was never trained, and labels that were shuffled.")
    tune: bool = Field(
        False,
        description="Choose rank, curvature and damping on half of the subsets and queries, and report on the others.",
    )

    @field_validator("methods", "removal_methods")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in METHODS:
                raise ValueError(f"{name!r} is no method; known: {', '.join(METHODS)}")
        if len(set(names)) < len(names):
            raise ValueError("a method is named twice")
        return names

    @model_validator(mode="after")
    def _enough(self) -> "AuditConfig":
        if self.tune and self.subsets < 6:
            raise ValueError(
                f"{setting('audit.tune')}: takes half of the subsets to choose on: pass "
                f"{setting('audit.subsets')} 6 or more"
            )
        return self

    @field_validator("problem")
    @classmethod
    def _named(cls, name: str | None) -> str | None:
        if name not in (None, "digits", "demo") and not all(str(name).partition(":")):
            raise ValueError(f"{name!r} is neither digits, nor demo, nor MODULE:FUNCTION")
        return name
