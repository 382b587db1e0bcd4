"""Parameters of reading documents and queries."""

from typing import Annotated

from pydantic import Field, field_validator

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.configuration import Configuration, Names

__all__ = ["CorpusConfig", "QueriesConfig"]

# Tokens of a window where nobody says another number.
USUAL_WINDOW = 512


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
    max_length: int | None = Field(
        None,
        ge=2,
        le=1_048_576,
        description="Tokens of a window; longer documents are cut, for a classifier after the first window; default: "
        f"{USUAL_WINDOW}, or all that the model reads where that is less.",
    )

    def window(self, max_positions: int | None) -> int:
        """Tokens of a window.

        Args:
            max_positions: most tokens the model reads; None if it states none.

        Raises:
            InputError: more are asked for.
        """
        most = max_positions or self.max_length or USUAL_WINDOW
        if self.max_length is not None and self.max_length > most:
            raise InputError(
                f"{setting('corpus.max_length')} {self.max_length}: the model reads at most {most} tokens; "
                f"pass {setting('corpus.max_length')} {most} or less"
            )
        return self.max_length or min(USUAL_WINDOW, most)

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
