"""The score store: what a scoring pass keeps, and, on request, the matrix of all scores."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.codecs import Crc32cCodec

from dataworth.storage.checked_arrays import checked_arrays
from dataworth.storage.checked_files import CheckedFiles
from dataworth.storage.errors import StoreIncompleteError
from dataworth.storage.locations import Place, location_of
from dataworth.storage.manifest import Store, new_store, write_manifest
from dataworth.storage.place import Location
from dataworth.storage.schema import LAYER_SCORES, PASSAGES, SOURCE_SUMS
from dataworth.storage.spelling import setting
from dataworth.storage.zarr_arrays import array_at

__all__ = ["ScoreMatrix", "ScoreStore", "ScoreWriter"]

COLUMNS_PER_CHUNK = 65_536

MATRIX = "scores.zarr"


class ScoreWriter:
    """Collects blocks of columns and writes whole chunks, so that memory stays that of one chunk.

    Args:
        path: folder of the Zarr group (`scores.zarr`).
        query_ids: names of the rows.
        n_documents: columns that will come.
    """

    def __init__(self, path: Path, query_ids: list[str], n_documents: int) -> None:
        self._group = zarr.open_group(path, mode="w", zarr_format=3)
        self._chunk = min(COLUMNS_PER_CHUNK, max(1, n_documents))
        self._scores = self._group.create_array(
            "scores",
            shape=(len(query_ids), n_documents),
            chunks=(max(1, len(query_ids)), self._chunk),
            dtype="float32",
            fill_value=np.nan,
            compressors=[Crc32cCodec()],
            dimension_names=("query", "document"),
        )
        self._names("query_id", query_ids, "query")
        self._pending: list[np.ndarray] = []
        self._document_ids: list[str] = []
        self._written = 0

    def _names(self, name: str, ids: list[str], dimension: str) -> None:
        array = self._group.create_array(
            name, shape=(len(ids),), chunks=(max(1, len(ids)),), dtype="string", dimension_names=(dimension,)
        )
        array[...] = np.asarray(ids, dtype=np.dtypes.StringDType())

    def add(self, block: np.ndarray, document_ids: list[str]) -> None:
        """Append (n_queries, n) scores of n documents."""
        self._pending.append(np.asarray(block, np.float32))
        self._document_ids += document_ids
        self._flush(whole_chunks=True)

    def close(self) -> None:
        """Write what is left, and the documents' ids.

        Raises:
            ValueError: fewer or more columns came than were announced.
        """
        self._flush(whole_chunks=False)
        if self._written != self._scores.shape[1]:
            raise ValueError(f"{self._written} columns of scores came, expected {self._scores.shape[1]}")
        self._names("document_id", self._document_ids, "document")

    def _flush(self, *, whole_chunks: bool) -> None:
        n_pending = sum(block.shape[1] for block in self._pending)
        n_ready = n_pending - n_pending % self._chunk if whole_chunks else n_pending
        if n_ready == 0:
            return
        joined = np.concatenate(self._pending, axis=1)
        self._scores[:, self._written : self._written + n_ready] = joined[:, :n_ready]
        self._written += n_ready
        self._pending = [joined[:, n_ready:]] if n_ready < n_pending else []


class ScoreMatrix:
    """The matrix of all scores, of which some columns are read at a time.

    Args:
        files: of the store.

    Raises:
        StoreDamagedError: its bytes changed; and later, those of the columns that are read.
    """

    def __init__(self, files: CheckedFiles) -> None:
        self._files = files
        with files.reading(MATRIX):
            group = zarr.open_group(checked_arrays(files, MATRIX), mode="r")
            self._scores = array_at(group, "scores")
            self.document_ids: list[str] = np.asarray(array_at(group, "document_id")[...]).tolist()

    @property
    def columns_per_chunk(self) -> int:
        return int(self._scores.chunks[1])

    def columns(self, numbers: np.ndarray) -> np.ndarray:
        """(n_queries, n) float32 scores of some documents, in the order asked for."""
        with self._files.reading(MATRIX):
            if len(numbers) and (np.diff(numbers) == 1).all():
                return np.asarray(self._scores[:, int(numbers[0]) : int(numbers[-1]) + 1])
            return np.asarray(self._scores.oindex[:, numbers])

    @property
    def totals(self) -> np.ndarray:
        """(n_documents,) float32 scores of all queries together."""
        with self._files.reading(MATRIX):
            return np.asarray(self._scores[-1])


class ScoreStore(Store):
    """Passages of the best and worst documents of each query, and sums by source; written once.

    Raises:
        StoreIncompleteError: the folder holds no finished store.
    """

    @classmethod
    @contextmanager
    def writing(cls, root: Place, fingerprint: str) -> Iterator["ScoreStoreWriter"]:
        """Write a store that appears only when the block ends without an exception."""
        with new_store(location_of(root) / fingerprint) as folder:
            yield ScoreStoreWriter(folder, fingerprint)

    @property
    def passages(self) -> pa.Table:
        """Table PASSAGES of dataworth.storage.schema."""
        return self.files.table("passages.parquet")

    @property
    def layer_scores(self) -> pa.Table | None:
        """Table LAYER_SCORES of dataworth.storage.schema, if it was kept."""
        return self.files.table("layers.parquet") if self.files.has("layers.parquet") else None

    @property
    def source_sums(self) -> pa.Table:
        """Table SOURCE_SUMS of dataworth.storage.schema."""
        return self.files.table("sources.parquet")

    @property
    def attributes(self) -> dict[str, Any]:
        """What the scores were made from."""
        return dict(self.entry("attributes"))

    @property
    def matrix_path(self) -> Location | None:
        """Folder of the matrix of all scores, if it was kept."""
        return self.path / MATRIX if self.files.has(MATRIX) else None

    def copy_matrix(self, folder: Path) -> bool:
        """Copy the matrix of all scores to a local folder that is not there yet; False where it was not kept.

        Raises:
            StoreDamagedError: its bytes changed.
        """
        path = self.matrix_path
        if path is None:
            return False
        self.files.check_all(MATRIX)
        path.copy_to(folder)
        return True

    @property
    def matrix(self) -> ScoreMatrix:
        """The matrix of all scores.

        Raises:
            StoreIncompleteError: it was not kept.
        """
        if self.matrix_path is None:
            raise StoreIncompleteError(
                f"{self.path} was made without {setting('scoring.save_matrix')}: value the corpus with it"
            )
        return ScoreMatrix(self.files)

    @property
    def total_scores(self) -> np.ndarray | None:
        """(n_documents,) float32 scores of all queries together, if the matrix of all scores was kept."""
        return None if self.matrix_path is None else self.matrix.totals


class ScoreStoreWriter:
    """A score store under construction (see `ScoreStore.writing`)."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.matrix_path = folder / MATRIX
        self._folder = folder
        self._fingerprint = fingerprint

    def write(
        self,
        passages: list[dict[str, Any]],
        source_sums: list[dict[str, Any]],
        attributes: dict[str, Any],
        layer_scores: list[dict[str, Any]] | None = None,
    ) -> None:
        """Write the tables and the manifest; `attributes` is JSON-serialisable."""
        if layer_scores is not None:
            table = pa.Table.from_pylist(layer_scores, LAYER_SCORES)
            pq.write_table(table, self._folder / "layers.parquet", write_page_checksum=True)
        pq.write_table(
            pa.Table.from_pylist(passages, PASSAGES), self._folder / "passages.parquet", write_page_checksum=True
        )
        pq.write_table(
            pa.Table.from_pylist(source_sums, SOURCE_SUMS), self._folder / "sources.parquet", write_page_checksum=True
        )
        write_manifest(self._folder, {"fingerprint": self._fingerprint, "attributes": attributes})
