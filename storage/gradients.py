"""The gradient store: projected gradients of documents, in shards of whole rows.

A store holds the rows of one model under one projection and one tokenisation. It grows by segments: what a run adds is
one segment, planned in full before its first row is computed, so a run that was killed goes on with the same plan and
ends with the same bytes. A row belongs to a content (the SHA-256 of a document's tokens), so a document is found
again under any id, in any corpus. A shard counts once its gradient chunk is in place; that chunk is written last.
Compacting replaces a segment by another that names it; from the moment the new one is whole the old one is not seen.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import numpy as np

from dataworth.storage.encoding import STORED
from dataworth.storage.errors import StoreIncompleteError
from dataworth.storage.layer_table import Layer, layers_of
from dataworth.storage.locations import Place, location_of
from dataworth.storage.manifest import MANIFEST, Store, is_complete, manifest_text
from dataworth.storage.place import Location
from dataworth.storage.ref import StoreRef
from dataworth.storage.schema import EXAMPLE_COLUMNS, rows_per_shard
from dataworth.storage.segments import Segment, SegmentTable, new_segment

__all__ = ["ALONG", "GradientStore"]

# An attribute: of rows that are no gradients but their products with a number a query, the queries' fingerprint.
ALONG = "along"
# Of a shard of such rows, each of which took a pass over a window as any other row did: what a kill loses.
ROWS_ALONG = 128


class GradientStore(Store):
    """All segments of one (model, projection, tokenisation).

    Raises:
        StoreIncompleteError: the folder holds no store.
    """

    @classmethod
    def create(
        cls,
        root: Place,
        fingerprint: str,
        layers: Sequence[Layer],
        dtype: str,
        attributes: Mapping[str, Any],
    ) -> "GradientStore":
        """Open the store of this fingerprint, made empty if it is not there yet.

        Args:
            root: folder of all gradient stores.
            fingerprint: hash of model, projection, tokenisation and dtype.
            layers: the layer table.
            dtype: of the stored rows, one of dataworth.storage.encoding.STORED.
            attributes: JSON-serialisable; what the fingerprint was made from.
        """
        target = location_of(root) / fingerprint
        if not is_complete(target):
            n_columns = sum(layer.n_columns for layer in layers)
            content = {
                "fingerprint": fingerprint,
                "layers": [asdict(layer) for layer in layers],
                "n_columns": n_columns,
                "dtype": dtype,
                "attributes": dict(attributes),
            }
            # By itself, so that where only the manifest was lost the segments stay.
            with target.writer_lock():
                if not is_complete(target):
                    (target / MANIFEST).write_whole(manifest_text(content | {"files": {}}))
        return cls(target)

    def _remedy(self) -> str:
        return f"run `dataworth verify --store {self.path.parent.parent}`, then run again"

    @property
    def ref(self) -> StoreRef:
        return StoreRef(kind="gradients", location=str(self.path), fingerprint=self.fingerprint)

    @property
    def layers(self) -> list[Layer]:
        return layers_of(self)

    @property
    def n_columns(self) -> int:
        return int(self.entry("n_columns"))

    @property
    def dtype(self) -> str:
        return str(self.entry("dtype"))

    @property
    def along(self) -> str | None:
        """The queries whose scores the rows are, one a column; None: they are gradients."""
        named: str | None = dict(self.entry("attributes")).get(ALONG)
        return named

    @property
    def rows_per_shard(self) -> int:
        """Rows of a shard of a new segment."""
        most = rows_per_shard(self.n_columns, STORED[self.dtype].itemsize)
        return most if self.along is None else min(most, ROWS_ALONG)

    @property
    def _table(self) -> SegmentTable:
        return SegmentTable(self.layers, self.n_columns, self.dtype, self.rows_per_shard)

    def writer(self) -> AbstractContextManager[None]:
        """The one writer's lock of this store; StoreBusyError where another process holds it."""
        return self.path.writer_lock()

    def segment_places(self) -> list[Location]:
        """Folders of all segments that were planned in full."""
        return [path for path in self.path.folders() if is_complete(path)]

    def segments(self) -> list[Segment]:
        """All segments that count, finished or not, in the order of their names."""
        segments = [Segment(path) for path in self.segment_places()]
        names = {segment.name for segment in segments}
        hidden = set()
        for segment in segments:
            predecessor = segment.manifest.get("replaces")
            if predecessor in names:
                hidden.add(predecessor if segment.is_done() else segment.name)
        return [segment for segment in segments if segment.name not in hidden]

    def stored(self) -> np.ndarray:
        """Contents all of whose rows are in place: array of 32-byte hashes."""
        hashes = [segment.contents[segment.content_done()] for segment in self.segments()]
        return np.concatenate([np.empty(0, "S32"), *hashes])

    def rows_of(self, contents: np.ndarray) -> list[np.ndarray]:
        """The rows of some contents, (n_windows, n_columns) each, every shard read once.

        Args:
            contents: (n_contents,) 32-byte hashes.

        Raises:
            StoreIncompleteError: a content is not stored.
            StoreDamagedError: a shard's bytes changed.
        """
        rows: dict[bytes, np.ndarray] = {}
        for segment in self.segments():
            wanted = np.flatnonzero(np.isin(segment.contents, contents) & segment.content_done())
            cached: tuple[int, np.ndarray] | None = None
            for number in wanted:
                first, end = int(segment.first_rows[number]), int(segment.first_rows[number + 1])
                parts = []
                for shard in range(first // segment.rows_per_shard, -(-end // segment.rows_per_shard)):
                    if cached is None or cached[0] != shard:
                        cached = (shard, segment.read_shard(shard))
                    start = segment.rows(shard).start
                    parts.append(cached[1][max(first - start, 0) : end - start])
                rows[segment.contents[number]] = np.concatenate(parts)
        missing = [content for content in contents if content not in rows]
        if missing:
            raise StoreIncompleteError(
                f"{self.path} lacks {len(missing)} of {len(contents)} documents: run index-corpus first"
            )
        return [rows[content] for content in contents]

    def column_of(self, name: str, contents: np.ndarray) -> list[np.ndarray]:
        """A column of EXAMPLE_COLUMNS for the rows of some contents, (n_windows,) each.

        Args:
            name: of the column.
            contents: (n_contents,) 32-byte hashes.

        Raises:
            StoreIncompleteError: a content is not stored.
        """
        values: dict[bytes, np.ndarray] = {}
        for segment in self.segments():
            wanted = np.flatnonzero(np.isin(segment.contents, contents) & segment.content_done())
            column = segment.column(name) if len(wanted) else np.empty(0)
            for number in wanted:
                values[segment.contents[number]] = column[segment.first_rows[number] : segment.first_rows[number + 1]]
        missing = [content for content in contents if content not in values]
        if missing:
            raise StoreIncompleteError(f"{self.path} lacks {len(missing)} of {len(contents)} documents")
        return [values[content] for content in contents]

    def lacks(self, contents: np.ndarray, n_windows: np.ndarray) -> bool:
        """Whether a content that has rows is not stored in full; arguments as of `plan`."""
        return bool((~np.isin(contents, self.stored()) & (n_windows > 0)).any())

    def plan(self, contents: np.ndarray, n_windows: np.ndarray) -> list[Segment]:
        """Segments to write so that every given content is stored; the caller holds the writer's lock.

        An unfinished segment that is wanted in full is taken up as it was planned; the rest becomes one new segment.

        Args:
            contents: (n_contents,) distinct 32-byte hashes, in the order their rows should have.
            n_windows: (n_contents,) rows of each; contents without rows are left out.
        """
        covered = self.stored()
        open_segments = []
        for segment in self.segments():
            unfinished = segment.contents[~segment.content_done()]
            wanted = bool(np.isin(segment.contents, contents).all())
            if len(unfinished) and wanted and not np.isin(unfinished, covered).any():
                segment.remove_fragments()
                open_segments.append(segment)
                covered = np.concatenate([covered, unfinished])
        new = ~np.isin(contents, covered) & (n_windows > 0)
        if new.any():
            open_segments.append(new_segment(self.path, self._table, contents[new], n_windows[new]))
        return open_segments

    def without(self, segment: Segment, contents: np.ndarray) -> None:
        """Take the rows of some contents out of a segment; the caller holds the writer's lock.

        The rows that stay are copied to a new segment, checked; the old one goes once the new one is whole. A segment
        of which nothing stays goes at once; one that has none of the contents is left. Of one that is not finished, or
        of which a shard was set aside, what is there stays; the next plan has the rest.

        Args:
            segment: of this store.
            contents: hashes to take out.

        Raises:
            StoreDamagedError: a shard whose rows would move is damaged.
        """
        gone = np.isin(segment.contents, contents)
        if not gone.any():
            return
        stays = ~gone & segment.content_done()
        if stays.any():
            n_windows = np.diff(segment.first_rows)
            successor = new_segment(
                self.path, self._table, segment.contents[stays], n_windows[stays], replaces=segment.name
            )
            sources = np.flatnonzero(np.repeat(stays, n_windows))
            columns = {name: segment.column(name) for name in EXAMPLE_COLUMNS}
            for shard in successor.open_shards():
                chosen = sources[successor.rows(shard)]
                successor.write_shard(
                    shard, segment.stored_rows(chosen), {name: column[chosen] for name, column in columns.items()}
                )
        segment.path.remove_tree()

    def remove_replaced(self) -> None:
        """Remove segments that others replace, which a killed compaction left; the caller holds the writer's lock."""
        counted = {segment.name for segment in self.segments()}
        for path in self.path.folders():
            if path.name not in counted:
                path.remove_tree()
