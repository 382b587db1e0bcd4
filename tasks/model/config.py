"""Parameters of loading a checkpoint."""

from typing import Literal

from pydantic import Field

from tasks.configuration import Configuration

__all__ = ["ModelConfig"]


class ModelConfig(Configuration):
    """The causal language model, or sequence classifier, whose training data is valued."""

    name: str = Field(min_length=1, description="Hugging Face name or a local checkpoint folder (safetensors only).")
    base: str | None = Field(
        None,
        min_length=1,
        description="The checkpoint that training began from, where it is known: what the model would still be without "
        "any source. Games over sources are much better with it.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the model; auto: float32 on CPU, the checkpoint's own on a GPU."
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1, mps …; auto: a GPU if there is one.")
    adapters: Literal["auto", "only", "none"] = Field(
        "auto",
        description="Of a model with LoRA adapters: track only those, or none of them (the layers below); auto: only.",
    )
    shard: bool = Field(
        False,
        description="Spread the weights over the processes torchrun started (FSDP2), for a model larger than one.",
    )
    include: list[str] = Field(
        default_factory=list, description="Track only layers whose name matches one of these patterns (* and ?)."
    )
    exclude: list[str] = Field(
        default_factory=list, description="Do not track layers whose name matches one of these patterns."
    )
