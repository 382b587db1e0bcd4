"""Parameters of projecting gradients."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from dataworth.tasks.configuration import Configuration, Names

__all__ = ["ProjectionConfig"]


class ProjectionConfig(Configuration):
    """How a layer's gradient is made small on both sides."""

    kind: Literal["random", "pca", "mask", "factgrass", "identity"] = Field(
        "random",
        description="random: Gaussian bases (LoGra); pca: leading eigenvectors of the KFAC factors, fitted on the "
        "corpus; mask: a subset of coordinates; factgrass: wider masks, "
        "then a sparse sketch; identity: no projection, for small models.",
    )
    rank: int = Field(16, ge=1, le=4096, description="Dimensions kept on each side of a layer.")
    ranks: list[str] = Field(
        default_factory=list,
        description="PATTERN=RANK for some layers, the first match counts; a RANK with a point is a fraction of the "
        "side, such as '*.mlp.*=0.25'.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the random projection.")
    bases: Annotated[str | None, Names.FILE] = Field(
        None,
        min_length=1,
        description="Folder of bases made earlier (a run logs it), used as they are: keeps pca bases while a corpus "
        "grows, so that its gradients are found again.",
    )

    @field_validator("ranks")
    @classmethod
    def _checked(cls, entries: list[str]) -> list[str]:
        for entry in entries:
            pattern, _, rank = entry.rpartition("=")
            try:
                allowed = 0 < float(rank) <= 1 if "." in rank else 1 <= int(rank) <= 4096
            except ValueError:
                allowed = False
            if not pattern or not allowed:
                raise ValueError(f"{entry!r} is not PATTERN=RANK with a rank from 1 to 4096 or a fraction such as 0.25")
        return entries
