"""Parameters of reading documents and queries."""

from typing import Annotated

from pydantic import Field, field_validator

from dataworth.tasks.configuration import Configuration, Names

__all__ = ["CorpusConfig", "QueriesConfig"]


class CorpusConfig(Configuration):
    """Where the documents are and how they are cut."""

    files: Annotated[list[str], Names.DOCUMENTS] = Field(
        min_length=1,
        description="JSONL, Parquet or CSV files, folders of such files, folders of text (a file is a document, a "
        "subfolder a source), or hf:NAME[:SPLIT]. In a folder .jsonl, .ndjson, .csv and .parquet are rows, all else "
        "is text, such as .txt, .md, .html or source code; .json, packed and binary files are refused.",
    )
    id: str = Field("id", min_length=1, description="Name of the field that holds a document's id.")
    source: str = Field("source", min_length=1, description="Name of the field that says who provided it.")
    text: str = Field("text", min_length=1, description="Name of the field that holds the text.")
    label: str = Field("label", min_length=1, description="Name of the field of a document's class (classifiers only).")
    fields: list[str] = Field(
        default_factory=list,
        description="Further fields to keep, to group documents by (text, numbers, booleans); see --sources.by.",
    )
    max_length: int = Field(
        512,
        ge=2,
        le=1_048_576,
        description="Tokens of a window; longer documents are cut, for a classifier after the first window.",
    )

    @field_validator("fields")
    @classmethod
    def _can_be_grouped_by(cls, names: list[str]) -> list[str]:
        for name in names:
            if not name.strip() or ">" in name or name == "source":
                raise ValueError("a further field has a name without '>', other than source, which is always kept")
        return list(dict.fromkeys(names))


class QueriesConfig(Configuration):
    """What is explained: prompts, with a completion or completed by the model."""

    file: Annotated[str, Names.FILE] = Field(
        min_length=1,
        description="JSONL with `id`, `prompt` and optionally `completion`; a class for a classifier.",
    )
    max_new_tokens: int = Field(
        64, ge=1, le=4096, description="Most tokens the model may add to a prompt that has no completion (greedy)."
    )
