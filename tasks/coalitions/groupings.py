"""Groupings: which documents are valued together, by source, by another field, or by fields nested in one another.

A grouping is written `source`, `licence` or `publisher>section`. No numpy here: configurations import it.
"""

import json
from collections.abc import Sequence

__all__ = ["SEPARATOR", "SOURCE", "group_names", "grouping_fields"]

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
