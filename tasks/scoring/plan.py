"""Which documents each shard holds: arithmetic on row numbers, no I/O."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["CorpusPlaces", "ShardWork", "corpus_places", "shard_works"]


@dataclass(frozen=True)
class CorpusPlaces:
    """The documents of a corpus, grouped by content.

    Args:
        contents: (n_contents,) distinct 32-byte hashes, sorted.
        first: (n_contents + 1,) where each content's documents start in `documents`.
        documents: (n_documents,) document numbers, ordered by content.
    """

    contents: np.ndarray
    first: np.ndarray
    documents: np.ndarray

    def of(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Documents that have one of some contents.

        Returns:
            Positions in `hashes` and document numbers, one pair a document, ordered by position.
        """
        if len(self.contents) == 0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        places = np.minimum(np.searchsorted(self.contents, hashes), len(self.contents) - 1)
        known = self.contents[places] == hashes
        counts = np.where(known, np.diff(self.first)[places], 0)
        positions = np.repeat(np.arange(len(hashes)), counts)
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return positions, self.documents[self.first[places[positions]] + offsets]


def corpus_places(contents: np.ndarray, numbers: np.ndarray) -> CorpusPlaces:
    """Group the documents of a corpus by content.

    Args:
        contents: (n_documents,) hashes.
        numbers: (n_documents,) the number of each document.
    """
    order = np.lexsort((numbers, contents))
    distinct, first = np.unique(contents[order], return_index=True)
    return CorpusPlaces(distinct, np.append(first, len(contents)), numbers[order])


@dataclass(frozen=True)
class ShardWork:
    """What a worker does with one shard.

    Args:
        segment: folder of the segment.
        shard: its number.
        first_rows: (n_contents,) row within the shard where each content present starts.
        whole: (n_contents,) all rows of the content are in this shard.
        ends: (n_contents,) the content's last row is in this shard.
        first_content: number in the segment of the first content present.
        positions: content of each document to score, counted from the first content present.
        documents: number of each document to score.
    """

    segment: str
    shard: int
    first_rows: np.ndarray
    whole: np.ndarray
    ends: np.ndarray
    first_content: int
    positions: np.ndarray
    documents: np.ndarray


def shard_works(
    segment: str, contents: np.ndarray, first_rows: np.ndarray, rows_per_shard: int, places: CorpusPlaces
) -> Iterator[ShardWork]:
    """The shards of a segment that hold documents of the corpus.

    Args:
        segment: its folder.
        contents: (n_contents,) hashes in row order.
        first_rows: (n_contents + 1,) first row of each, and the end.
        rows_per_shard: rows of a shard.
        places: the corpus.
    """
    n_rows = int(first_rows[-1])
    for shard, start in enumerate(range(0, n_rows, rows_per_shard)):
        end = min(start + rows_per_shard, n_rows)
        first_content = int(np.searchsorted(first_rows, start, side="right")) - 1
        end_content = int(np.searchsorted(first_rows, end, side="left"))
        positions, documents = places.of(contents[first_content:end_content])
        if len(documents) == 0:
            continue
        starts = first_rows[first_content:end_content]
        ends = first_rows[first_content + 1 : end_content + 1]
        yield ShardWork(
            segment=segment,
            shard=shard,
            first_rows=np.maximum(starts - start, 0),
            whole=(starts >= start) & (ends <= end),
            ends=ends <= end,
            first_content=first_content,
            positions=positions,
            documents=documents,
        )
