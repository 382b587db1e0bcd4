"""Parameters of loading a checkpoint, and of a run's checkpoints."""

import glob
import os.path
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dataworth.tasks.configuration import Configuration, Names
from dataworth.tasks.model.adapter_folders import is_adapter, put_on

__all__ = ["ModelConfig", "ModelsConfig", "folders_of", "with_folders"]


Name = Annotated[str, Field(min_length=1)]
NUMBER = re.compile(r"\d+$")


class _Loading(Configuration):
    """How weights are loaded, and what of them is tracked."""

    name: Any  # of one checkpoint or of several, see below; here because it comes first in forms and help
    base: Annotated[str | None, Names.MODEL] = Field(
        None,
        min_length=1,
        description="The checkpoint that training began from, where it is known: what the model would still be without "
        "any source. Games over sources are much better with it. LoRA adapters name theirs themselves.",
    )
    tokenizer: Annotated[str | None, Names.MODEL] = Field(
        None,
        min_length=1,
        description="The checkpoint whose tokenizer it is, a name or a folder, where the checkpoint itself has none.",
    )
    point: Literal["auto", "end", "base", "both"] = Field(
        "auto",
        description="Where gradients are taken: end, of the model; base, of what training began from (index and fit); "
        "both: scores are three quarters the model's and one the base's, and sums of sources parts of what training "
        "took off the loss. auto: both where --model.base is given and scores are summed, else end.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the model; auto: float32 on CPU, the checkpoint's own on a GPU."
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1, mps …; auto: a GPU if there is one.")
    adapters: Literal["auto", "only", "none"] = Field(
        "auto",
        description="Of a model with LoRA adapters: track only those, or none of them (the layers below); auto: only.",
    )
    parameters: Literal["linear", "all"] = Field(
        "linear",
        description="Whose gradients are kept: linear, of the linear layers between embeddings and head; all: also of "
        "embeddings, head, vectors such as norms have, and of experts that are one tensor, each a layer.",
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


class ModelConfig(_Loading):
    """One checkpoint of the causal language model, or sequence classifier, whose training data is valued."""

    name: Annotated[str, Names.MODEL] = Field(
        min_length=1, description="Hugging Face name or a local checkpoint folder (safetensors only)."
    )

    @property
    def identity(self) -> dict[str, Any]:
        """What results were always kept under, and of what can be chosen since then, what was."""
        kept: dict[str, Any] = self.model_dump(mode="json", exclude={"tokenizer", "point", "parameters"})
        chosen = {} if self.tokenizer is None else {"tokenizer": self.tokenizer}
        chosen |= {} if self.parameters == "linear" else {"parameters": self.parameters}
        return kept | chosen | ({"point": self.point} if self.point in ("base", "both") else {})


class ModelsConfig(_Loading):
    """The causal language model, or sequence classifier, whose training data is valued: one checkpoint, or several."""

    name: Annotated[list[Name], Names.MODEL] = Field(
        min_length=1,
        description="Hugging Face name or a local checkpoint folder (safetensors only); of several checkpoints or "
        "seeds of one model, which share its tokenizer, scores and values are averaged. On a command line, "
        "run/checkpoint-* is all such folders, by their numbers.",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_one(cls, given: Any) -> Any:
        return given.model_dump(exclude_unset=True) if isinstance(given, ModelConfig) else given

    @field_validator("name", mode="before", json_schema_input_type=list[Name] | Name)
    @classmethod
    def _single(cls, name: Any) -> Any:
        return [name] if isinstance(name, str) else name

    @field_validator("name")
    @classmethod
    def _distinct(cls, name: list[str]) -> list[str]:
        seen: set[str] = set()
        for each in name:
            folder = os.path.normpath(each)
            if folder in seen:
                raise ValueError(f"{each} is given twice")
            seen.add(folder)
        return name

    @property
    def checkpoints(self) -> tuple[ModelConfig, ...]:
        """Each checkpoint by itself, in the given order; precision, device, layers and a given base are those of all.

        Adapters name their base themselves.
        """
        settings = self.model_dump(exclude={"name", "base"})
        return tuple(ModelConfig(name=each, base=self.base or _named_base(each), **settings) for each in self.name)

    @property
    def has_base(self) -> bool:
        """Is it known of every checkpoint what training began from?"""
        return self.base is not None or all(is_adapter(each) for each in self.name)

    @property
    def only(self) -> ModelConfig:
        """The checkpoint of a run of one.

        Raises:
            ValueError: the run is of several.
        """
        if len(self.name) != 1:
            raise ValueError(f"expected one checkpoint, got {len(self.name)}")
        return self.checkpoints[0]


def folders_of(name: str) -> list[str]:
    """The folders of a pattern, those that end in a number by that; of anything else, or where there are none, itself.

    For who is at home here: whether there are folders is not for everybody who may fill in a form.
    """
    if os.path.lexists(name) or not any(sign in name for sign in "*?["):
        return [name]
    found = [each for each in glob.glob(name) if os.path.isdir(each)]
    return sorted(found, key=_by_number) or [name]


def with_folders(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the folders of patterns of checkpoints in their places."""
    found = dict(content)
    for room, field in (("model", "name"), ("sources", "checkpoints")):
        group = found.get(room)
        chosen = group.get(field) if isinstance(group, dict) else None
        names = [chosen] if isinstance(chosen, str) else chosen
        if isinstance(group, dict) and isinstance(names, list) and all(isinstance(each, str) for each in names):
            folders = [folder for each in names for folder in folders_of(each)]
            found[room] = {**group, field: chosen if folders == names else folders}
    return found


def _by_number(name: str) -> tuple[str, int, str]:
    digits = NUMBER.search(name)
    return (name, -1, "") if digits is None else (name[: digits.start()], int(digits[0]), name)


def _named_base(name: str) -> str | None:
    """The checkpoint that adapters say they were trained on; None of other models, and where loading will say why."""
    try:
        return put_on(name) if is_adapter(name) else None
    except (OSError, ValueError, ImportError):
        return None
