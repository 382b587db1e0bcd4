"""Who plays: the group of every document of a corpus."""

from storage.corpus import CorpusStore
from storage.errors import InputError
from tasks.coalitions.groupings import group_names, grouping_fields

__all__ = ["document_groups"]


def document_groups(corpus: CorpusStore, grouping: str) -> list[str]:
    """The player each document belongs to, in the order of the documents.

    Raises:
        InputError: the corpus keeps no such field, or two groups would get one name.
    """
    """(n_documents,) the group each document belongs to."""
    try:
        return group_names([corpus.field(name) for name in grouping_fields(grouping)])
    except KeyError as error:
        raise InputError(
            f"--sources.by {grouping}: the corpus keeps no field {error}; name it in --corpus.fields"
        ) from None
    except ValueError as error:
        raise InputError(f"--sources.by {grouping}: {error}") from None
