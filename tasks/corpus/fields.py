"""The names of a row's fields, and what a document is made of: a text, a conversation, or a prompt and its answer."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.visible import short

__all__ = ["OPTIONS", "TOOLS", "Fields", "Form", "has_field", "missing", "refuse_half"]

Form = Literal["auto", "text", "messages", "pairs"]

# Two fields that are trained on as one text: what is asked, what is said.
HALVES = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"))
# Of a conversation, beside its messages.
TOOLS, OPTIONS = "tools", "chat_template_kwargs"
# What `auto` finds in a row: a field that another name was given to is meant.
TEXT = "text"


@dataclass(frozen=True)
class Fields:
    """The names that the fields of a row have.

    Args:
        id, source, text, messages, prompt, completion, label: see dataworth.tasks.corpus.config.CorpusConfig; a dot
            leads into an object.
        labelled: is there a class?
        kept: further ones.
        form: what a document is made of.
        owner: the source of all documents, whatever their rows say; None: their rows say it.
        of_folders: further fields of every row of a file, that the names of its folders say.
    """

    id: str = "id"
    source: str = "source"
    text: str = TEXT
    messages: str = "messages"
    prompt: str = "prompt"
    completion: str = "completion"
    label: str = "label"
    labelled: bool = False
    kept: tuple[str, ...] = ()
    form: Form = "auto"
    owner: str | None = None
    of_folders: tuple[str, ...] = ()

    def is_any(self, names: Collection[str]) -> bool:
        """Is there what a document is made of?"""
        of_pair = has_field(names, self.prompt) and has_field(names, self.completion)
        return of_pair or has_field(names, self.text) or has_field(names, self.messages)

    def form_of(self, names: Collection[str], where: str) -> Form:
        """What a document is made of where there are fields of these names.

        Raises:
            InputError: of several things, or of one half of a text.
        """
        if self.form != "auto":
            return self.form
        refuse_half(names, self.text, where)
        has = {
            "text": has_field(names, self.text),
            "messages": has_field(names, self.messages),
            "pairs": has_field(names, self.prompt) and has_field(names, self.completion),
        }
        found: list[Form] = [form for form in ("text", "messages", "pairs") if has[form]]
        if len(found) < 2 or (has["text"] and self.text != TEXT):
            return found[0] if found else "text"
        raise InputError(
            f"{where}: has {' and '.join(self.named(form) for form in found)}; say which the model was trained on: "
            f"{setting('corpus.form')} {' or '.join(found)}"
        )

    def named(self, form: Form) -> str:
        """The fields of a form, in words."""
        return f"{self.prompt} and {self.completion}" if form == "pairs" else getattr(self, form)

    def read_of(self, names: Collection[str], where: str) -> list[str]:
        """The fields that are read of a table with columns of these names.

        Raises:
            InputError: one is missing, or as in `form_of`.
        """
        form = self.form_of(names, where)
        if form == "text" and not has_field(names, self.text):
            raise InputError(missing(names, self.text, where))
        of_text = {"pairs": (self.prompt, self.completion)}.get(form, (getattr(self, form, ""),))
        needed = [*of_text, *(() if self.owner else (self.source,)), *self.kept, *((self.label,) * self.labelled)]
        needed = [name for name in needed if has_field(names, name) or name not in self.of_folders]
        for name in needed:
            if not has_field(names, name):
                raise InputError(missing(names, name, where))
        may_be = [self.id, *(() if form == "text" else (TOOLS, OPTIONS))]
        return list(dict.fromkeys([*(name for name in may_be if has_field(names, name)), *needed]))


def refuse_half(names: Collection[str], text: str, where: str) -> None:
    """Refuse to take one half of a prompt and its completion for the text: a model was trained on both together.

    Args:
        names: of all fields.
        text: the one that holds the text.
        where: file and line.

    Raises:
        InputError: the other half is there, too.
    """
    for pair in HALVES:
        if text in pair and pair[0] in names and pair[1] in names:
            raise InputError(
                f"{where}, field {text!r}: {pair[0]} and {pair[1]} are halves of one text; pass "
                f"{setting('corpus.prompt')} {pair[0]} {setting('corpus.completion')} {pair[1]} in its place"
            )


def has_field(names: Collection[str], field: str) -> bool:
    """Whether a row with fields of these names may have one; a dot leads into an object."""
    return field in names or field.partition(".")[0] in names


def missing(names: Iterable[str], field: str, where: str) -> str:
    """The sentence of a field that a row, or a table, has not."""
    known = ", ".join(sorted(str(name) for name in names)) or "none"
    pair = next((pair for pair in HALVES if set(pair) <= set(names)), None) if field == TEXT else None
    remedy = f"; pass {setting('corpus.prompt')} {pair[0]} {setting('corpus.completion')} {pair[1]}" if pair else ""
    if field == "source":
        remedy = f"; name the source of a whole file: {setting('corpus.files')} NAME=FILE"
    return f"{where}, field {field!r}: missing (fields there: {short(known)}){remedy}"
