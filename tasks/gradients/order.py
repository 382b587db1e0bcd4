"""The order of a corpus' contents in the store, and which window is in which row."""

import numpy as np

__all__ = ["content_order", "row_windows"]


def content_order(contents: np.ndarray, n_tokens: np.ndarray) -> np.ndarray:
    """Positions of the distinct contents, short documents first, so that a shard holds rows of similar length.

    Depends on the contents alone, not on the order or the ids of the documents.

    Args:
        contents: (n_documents,) 32-byte hashes; the same content may come several times.
        n_tokens: (n_documents,) tokens of each.

    Returns:
        Position of one document for each distinct content, ordered by tokens, then hash.
    """
    _, first = np.unique(contents, return_index=True)
    return first[np.lexsort((contents[first], n_tokens[first]))]


def row_windows(
    segment_contents: np.ndarray, first_rows: np.ndarray, contents: np.ndarray, first_windows: np.ndarray
) -> np.ndarray:
    """The window of a corpus that belongs in each row of a segment; -1 where the corpus lacks the content.

    Args:
        segment_contents: (n_contents,) hashes in row order.
        first_rows: (n_contents + 1,) first row of each, and the end.
        contents: (n_documents,) hashes of the corpus.
        first_windows: (n_documents + 1,) first window of each document, and the end.
    """
    order = np.argsort(contents, kind="stable")
    places = np.searchsorted(contents[order], segment_contents)
    documents = order[np.minimum(places, len(order) - 1)]
    known = contents[documents] == segment_contents
    n_rows = np.diff(first_rows)
    offsets = np.arange(first_rows[-1]) - np.repeat(first_rows[:-1], n_rows)
    windows = np.repeat(first_windows[documents], n_rows) + offsets
    return np.where(np.repeat(known, n_rows), windows, -1)
