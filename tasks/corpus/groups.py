"""Groupings: which documents are valued together, by source, by another field, or by fields nested in one another.

A grouping is written `source`, `licence` or `publisher>section`. No numpy here: configurations import it.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting

if TYPE_CHECKING:
    from dataworth.storage.corpus import CorpusStore

__all__ = ["SEPARATOR", "SOURCE", "document_groups", "group_names", "grouping_fields"]

SOURCE = "source"
NESTED = ">"
SEPARATOR = " > "


def grouping_fields(grouping: str) -> tuple[str, ...]:
    """The fields a grouping names, coarsest first.

    Raises:
        ValueError: a name is empty or comes twice.
    """
    names = tuple(name.strip() for name in grouping.split(NESTED))
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"the grouping {grouping!r} must name fields, each once, joined by {NESTED}")
    return names


def group_names(columns: Sequence[Sequence[str | int | float | bool]]) -> list[str]:
    """The player each document belongs to.

    Args:
        columns: values of each field of the grouping, coarsest first, (n_documents,) each.

    Raises:
        ValueError: a value of nested fields holds the separator, so that two groups could get one name.
    """
    texts = [[value if isinstance(value, str) else json.dumps(value) for value in column] for column in columns]
    names = [SEPARATOR.join(parts) for parts in zip(*texts, strict=True)]
    if len(columns) > 1:
        for name, *parts in zip(names, *texts, strict=True):
            if name.split(SEPARATOR) != parts:
                raise ValueError(f"the value {max(parts, key=len)!r} holds {SEPARATOR!r}, which separates levels")
    return names


def document_groups(corpus: "CorpusStore", grouping: str) -> list[str]:
    """The player each document belongs to, (n_documents,) in the order of the documents.

    Raises:
        InputError: the corpus keeps no such field, or two groups would get one name.
    """
    try:
        return group_names([corpus.field(name) for name in grouping_fields(grouping)])
    except KeyError as error:
        raise InputError(
            f"{setting('sources.by')} {grouping}: the corpus keeps no field {error}; name it in "
            f"{setting('corpus.fields')}"
        ) from None
    except ValueError as error:
        raise InputError(f"{setting('sources.by')} {grouping}: {error}") from None
