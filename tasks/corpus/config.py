"""Parameters of reading documents and queries."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.configuration import Configuration, Names
from dataworth.tasks.corpus.fields import Fields, Form
from dataworth.tasks.corpus.rejected import OnBadRow
from dataworth.tasks.corpus.taught import Loss

__all__ = ["COPY_OF", "OWNERS", "CandidatesConfig", "CorpusConfig", "QueriesConfig"]

# Fields that every document has where near copies are found: the sources of all of its copies, and the first of these
# (nothing of the first itself).
OWNERS, COPY_OF = "owners", "near_copy_of"

# Tokens of a window where nobody says another number.
USUAL_WINDOW = 512


class CorpusConfig(Configuration):
    """Where the documents are and how they are cut."""

    files: Annotated[list[str], Names.DOCUMENTS] = Field(
        min_length=1,
        description="JSONL, JSON, Parquet, CSV or Arrow files (also .jsonl.gz, .bz2, .zst), patterns (news/*.jsonl), "
        "folders of such files or of save_to_disk, texts (.txt, .md), folders of text (a file is a document, a "
        "subfolder a source), or hf:NAME[[:CONFIG]:SPLIT]; NAME=FILE gives all of its documents the source NAME. In a "
        "folder .jsonl, .ndjson, .json, .csv, .parquet and .arrow are rows, all else is text, such as .txt, .md, .html "
        "or source code; other packed files and binary ones are refused.",
    )
    id: str = Field(
        "id",
        min_length=1,
        description="Name of the field that holds a document's id; without one it is made of the content. In this and "
        "the next a dot leads into an object: meta.source.",
    )
    source: str = Field("source", min_length=1, description="Name of the field that says who provided it.")
    text: str = Field("text", min_length=1, description="Name of the field that holds the text.")
    messages: str = Field(
        "messages",
        min_length=1,
        description="Name of the field that holds a conversation, a list of objects with role and content.",
    )
    prompt: str = Field(
        "prompt", min_length=1, description="Name of the field that holds the first half of a pair, text or messages."
    )
    completion: str = Field(
        "completion", min_length=1, description="Name of the field that holds its second half, which alone is taught."
    )
    form: Form = Field(
        "auto",
        description="What a document is: text, messages (a conversation, as the chat template writes it) or pairs "
        "(prompt and completion); auto: by the fields it has.",
    )
    loss: Loss = Field(
        "answers",
        description="Which tokens of conversations and pairs were taught: answers (the assistant's turns, the "
        "completion), last (the assistant's last turn) or all.",
    )
    chat_template: Annotated[str | None, Names.FILE] = Field(
        None, min_length=1, description="File of the chat template that training used; default: the model's own."
    )
    eos: bool | None = Field(
        None,
        description="Whether the end token was put after every text that does not end with it; default: after the "
        "completions of pairs of texts, as TRL does.",
    )
    on_bad_row: OnBadRow = Field(
        "stop",
        description="What follows on rows that cannot be read: stop names the first ten; skip leaves them out, counts "
        "them in the report, and keeps them with the reason in rejected.parquet of the results.",
    )
    label: str = Field("label", min_length=1, description="Name of the field of a document's class (classifiers only).")
    fields: list[str] = Field(
        default_factory=list,
        description="Further fields to keep, to group documents by (text, numbers, booleans); see --sources.by.",
    )
    near_copies: float | None = Field(
        None,
        ge=0.3,
        le=1,
        description="Find near copies: documents at least so much of whose sequences of five words are those of an "
        "earlier one, such as 0.8 (Jaccard, by MinHash). They are listed in near_copies.parquet, and with --sources.by "
        "owners texts that several sources have are valued as one player of them all.",
    )
    max_length: int | None = Field(
        None,
        ge=2,
        le=1_048_576,
        description="Tokens of a window; longer documents are cut, for a classifier after the first window; default: "
        f"{USUAL_WINDOW}, or all that the model reads where that is less.",
    )

    @property
    def kept_fields(self) -> list[str]:
        """Further fields that the corpus keeps: as named, and those that are made."""
        return [*self.fields, *([] if self.near_copies is None else (OWNERS, COPY_OF))]

    @property
    def names(self) -> Fields:
        """The names of a row's fields, where rows say their source and have no class."""
        return Fields(
            id=self.id,
            source=self.source,
            text=self.text,
            messages=self.messages,
            prompt=self.prompt,
            completion=self.completion,
            label=self.label,
            kept=tuple(self.fields),
            form=self.form,
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

    @model_validator(mode="after")
    def _owned(self) -> "CorpusConfig":
        if self.near_copies is not None and {OWNERS, COPY_OF} & set(self.fields):
            raise ValueError(
                f"near copies: the fields {OWNERS} and {COPY_OF} are made: leave them out of {setting('corpus.fields')}"
            )
        return self

    @field_validator("fields")
    @classmethod
    def _can_be_grouped_by(cls, names: list[str]) -> list[str]:
        for name in names:
            if not name.strip() or ">" in name or name == "source":
                raise ValueError("a further field has a name without '>', other than source, which is always kept")
        return list(dict.fromkeys(names))


class CandidatesConfig(Configuration):
    """Documents that the model was not trained on: what would the queries gain from them?"""

    files: Annotated[list[str], Names.DOCUMENTS] = Field(
        default_factory=list, description="As --corpus has them, and read as it is; each of their sources is valued."
    )
    epochs: int = Field(
        0,
        ge=0,
        le=1000,
        description="Passes that the model, as it is, is trained on the documents of each source alone, by --training, "
        "to measure what they teach; as many as its training made tell best. 0: their gradients tell, no training.",
    )


class QueriesConfig(Configuration):
    """What is explained: prompts, with a completion or completed by the model."""

    file: Annotated[str, Names.FILE] = Field(
        min_length=1,
        description="JSONL with `id`, `prompt` and optionally `completion`, a class for a classifier; or with `id` and "
        "`messages`, a conversation whose last answer is explained, or written by the model.",
    )
    max_new_tokens: int = Field(
        64, ge=1, le=4096, description="Most tokens the model may add to a prompt that has no completion (greedy)."
    )
