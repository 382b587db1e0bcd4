"""The corpus store: documents, their tokens, and the windows that are the examples."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataworth.storage.checked_files import CheckedBytes
from dataworth.storage.locations import Place, location_of
from dataworth.storage.manifest import Store, building_folder, is_complete, write_manifest
from dataworth.storage.ref import StoreRef, fingerprint
from dataworth.storage.schema import DOCUMENTS, FIELDS, NO_CLASS, REJECTED, REJECTED_FILE, TOKEN_DTYPE, WINDOWS

__all__ = ["CorpusStore", "FieldValue", "TokenisedDocument", "token_ids"]

FieldValue = str | int | float | bool

# Of a row group, which is read as a whole for any of its rows: documents, and characters unless one alone has more.
DOCUMENTS_PER_ROW_GROUP = 4096
CHARACTERS_PER_ROW_GROUP = 2**24


@dataclass(frozen=True)
class TokenisedDocument:
    """A document, its token ids and where it is cut.

    Args:
        document_id, source, text: as read.
        tokens: (n_tokens,) int32 token ids of the windows that are kept.
        windows: per window (first token, n_tokens, n_masked, first character, end character); the loss of the first
            `n_masked` tokens of a window is not taken.
        untaught: (n_tokens,) bool, further tokens whose loss is not taken; None: there are none.
        n_prompt_characters: length of the prompt at the start of `text`; 0 for documents of a corpus.
        label: class, for a classifier; NO_CLASS where the tokens themselves are the targets.
        fields: further fields by name.
        remarks: what a person should know of how it was read; not stored.
    """

    document_id: str
    source: str
    text: str
    tokens: np.ndarray
    windows: tuple[tuple[int, int, int, int, int], ...]
    n_prompt_characters: int = 0
    label: int = NO_CLASS
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    untaught: np.ndarray | None = None

    @property
    def stored(self) -> np.ndarray:
        """(n_tokens,) TOKEN_DTYPE as they are kept; see dataworth.storage.schema."""
        tokens = self.tokens.astype(TOKEN_DTYPE)
        return tokens if self.untaught is None else np.where(self.untaught, ~tokens, tokens)

    @property
    def content(self) -> bytes:
        """SHA-256 of what decides the gradients: token ids, and masks or class."""
        targets = [window[2] for window in self.windows] if self.label == NO_CLASS else [self.label]
        masks = np.asarray(targets, TOKEN_DTYPE)
        return hashlib.sha256(masks.tobytes() + self.stored.tobytes()).digest()


def token_ids(stored: np.ndarray) -> np.ndarray:
    """Token ids of tokens as they are kept, of the same shape; see dataworth.storage.schema."""
    return np.where(stored < 0, ~stored, stored)


class CorpusStore(Store):
    """Read access to a written corpus.

    Raises:
        StoreIncompleteError: the folder holds no finished store.
    """

    @classmethod
    def write(
        cls,
        root: Place,
        documents: Iterable[TokenisedDocument],
        attributes: dict[str, Any],
        fields: Sequence[str] = (),
        rejected: Sequence[str] = (),
    ) -> StoreRef:
        """Stream documents into `root/<fingerprint>`; the fingerprint is that of content and attributes.

        Nothing is left behind if `documents` raises. Writing the same corpus twice keeps the first.

        Args:
            root: folder of all corpora.
            documents: in the order they are to be numbered.
            attributes: JSON-serialisable; part of the fingerprint (tokeniser, window length).
            fields: names of the further fields every document has; without any, the bytes are those of a corpus
                that knows of none.
            rejected: why rows were left out, complete once `documents` ends; kept beside them, and part of the
                fingerprint.
        """
        folder = location_of(root)
        with building_folder(folder) as staging:
            digest = hashlib.sha256(repr(sorted(attributes.items())).encode())
            counts = _write_tables(staging, documents, digest, with_fields=bool(fields))
            if rejected:
                digest.update(repr(list(rejected)).encode())
                pq.write_table(pa.table({"reason": list(rejected)}, REJECTED), staging / REJECTED_FILE)
                counts["n_rejected"] = len(rejected)
            name = digest.hexdigest()[:32]
            kept = {"fields": sorted(fields)} if fields else {}
            write_manifest(staging, {"fingerprint": name, "attributes": attributes, **kept, **counts})
            target = folder / name
            if not is_complete(target):
                with target.writer_lock():
                    if not is_complete(target):
                        target.take(staging)
        return StoreRef(kind="corpus", location=str(target), fingerprint=name)

    @property
    def ref(self) -> StoreRef:
        return StoreRef(kind="corpus", location=str(self.path), fingerprint=self.fingerprint)

    @property
    def attributes(self) -> dict[str, Any]:
        """Tokeniser and window length."""
        return dict(self.entry("attributes"))

    @property
    def n_documents(self) -> int:
        return int(self.entry("n_documents"))

    @property
    def n_examples(self) -> int:
        return int(self.entry("n_examples"))

    @property
    def n_tokens(self) -> int:
        return int(self.entry("n_tokens"))

    @property
    def n_rejected(self) -> int:
        """Rows that could not be read and were left out."""
        return int(self.manifest.get("n_rejected", 0))

    def rejected(self) -> list[str]:
        """(n_rejected,) why each row was left out, with its place."""
        return self.files.table(REJECTED_FILE).column(0).to_pylist() if self.n_rejected else []

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of the documents' table."""
        return self.files.table("documents.parquet", [name]).column(0)

    @property
    def fields(self) -> list[str]:
        """Names of the further fields that are kept."""
        return list(self.manifest.get("fields", []))

    def field(self, name: str) -> list[FieldValue]:
        """(n_documents,) values of one further field, or of `source`.

        Raises:
            KeyError: the corpus does not keep it.
        """
        if name == "source":
            return self.column(name).to_pylist()
        if name not in self.fields:
            raise KeyError(name)
        values = self.column(FIELDS.name).to_pylist()
        with self.files.reading("documents.parquet"):
            return [json.loads(each)[name] for each in values]

    @cached_property
    def windows(self) -> dict[str, np.ndarray]:
        """The windows' table as arrays of length n_examples, in document order."""
        table = self.files.table("windows.parquet")
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
        return {"label": np.full(len(table), NO_CLASS, np.int32), **columns}  # early corpora have no such column

    @cached_property
    def first_windows(self) -> np.ndarray:
        """(n_documents + 1,) int64: number of the first window of each document, and the end."""
        return np.concatenate([[0], np.cumsum(self.column("n_windows").to_numpy(), dtype=np.int64)])

    @cached_property
    def contents(self) -> np.ndarray:
        """(n_documents,) of 32-byte content hashes."""
        return np.asarray(self.column("content").to_numpy(zero_copy_only=False), dtype="S32")

    @property
    def contents_fingerprint(self) -> str:
        """Hash of the documents' contents, whatever their ids and their order."""
        return fingerprint(sorted(content.hex() for content in self.contents.tolist()))

    @cached_property
    def _tokens(self) -> CheckedBytes:
        content = self.files.mapped("tokens.bin")
        if len(content) != int(self.entry("n_stored_tokens")) * TOKEN_DTYPE.itemsize:
            raise self.files.damaged("tokens.bin", "has changed its length")
        return content

    def tokens(self, window: int) -> np.ndarray:
        """(n_tokens,) token ids of one example.

        Raises:
            StoreDamagedError: their bytes changed.
        """
        return token_ids(self.stored_tokens(window))

    @cached_property
    def n_untaught(self) -> np.ndarray:
        """(n_examples,) int64 tokens of each example whose loss is not taken, beyond its first `n_masked`."""
        found = np.zeros(self.n_examples, np.int64)
        if self.manifest.get("has_untaught", False):
            for window in range(self.n_examples):
                found[window] = (self.stored_tokens(window) < 0).sum()
        return found

    def stored_tokens(self, window: int) -> np.ndarray:
        """(n_tokens,) of one example as they are kept: its token ids, complements of those whose loss is not taken.

        Raises:
            StoreDamagedError: their bytes changed.
        """
        start = int(self.windows["token_start"][window]) * TOKEN_DTYPE.itemsize
        end = start + int(self.windows["n_tokens"][window]) * TOKEN_DTYPE.itemsize
        return self._tokens[start:end].view(TOKEN_DTYPE)

    def documents(self, rows: np.ndarray | Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
        """Rows of the documents' table, all or the given ones; only the parts of the file that hold them are read."""
        if rows is not None:
            yield from self.files.table("documents.parquet", rows=rows).to_pylist()
            return
        for part in self.files.row_groups("documents.parquet"):
            yield from part.to_pylist()


def _parts(document: TokenisedDocument, further: str | None) -> list[bytes]:
    """What of a document is in the fingerprint of its corpus."""
    parts = [document.document_id.encode(), document.source.encode(), document.text.encode(), document.content]
    if document.n_prompt_characters:
        parts.append(b"prompt %d" % document.n_prompt_characters)
    return parts if further is None else [*parts, further.encode()]


def _window_rows(document: TokenisedDocument, number: int, first_token: int) -> list[dict[str, Any]]:
    """Rows of WINDOWS of dataworth.storage.schema."""
    return [
        {
            "document": number,
            "token_start": first_token + start,
            "n_tokens": length,
            "n_masked": n_masked,
            "character_start": first_character,
            "character_end": end_character,
            "label": document.label,
        }
        for start, length, n_masked, first_character, end_character in document.windows
    ]


def _write_tables(
    folder: Path, documents: Iterable[TokenisedDocument], digest: "hashlib._Hash", *, with_fields: bool
) -> dict[str, int]:
    schema = DOCUMENTS.append(FIELDS) if with_fields else DOCUMENTS
    counts = {"n_documents": 0, "n_examples": 0, "n_tokens": 0, "n_stored_tokens": 0}
    has_untaught = False
    rows: list[dict[str, Any]] = []
    windows: list[dict[str, Any]] = []
    with (
        (folder / "tokens.bin").open("wb") as tokens,
        pq.ParquetWriter(folder / "documents.parquet", schema, write_page_checksum=True) as document_writer,
        pq.ParquetWriter(folder / "windows.parquet", WINDOWS, write_page_checksum=True) as window_writer,
    ):

        def flush() -> None:
            document_writer.write_table(pa.Table.from_pylist(rows, schema))
            window_writer.write_table(pa.Table.from_pylist(windows, WINDOWS))
            rows.clear()
            windows.clear()

        n_pending = 0
        for document in documents:
            further = json.dumps(dict(document.fields), sort_keys=True) if with_fields else None
            for part in _parts(document, further):
                digest.update(len(part).to_bytes(8, "little") + part)
            n_tokens = sum(window[1] for window in document.windows)
            rows.append(
                {
                    "document_id": document.document_id,
                    "source": document.source,
                    "text": document.text,
                    "n_prompt_characters": document.n_prompt_characters,
                    "content": document.content,
                    "n_tokens": n_tokens,
                    "n_windows": len(document.windows),
                    FIELDS.name: further,
                }
            )
            windows += _window_rows(document, counts["n_documents"], counts["n_stored_tokens"])
            tokens.write(document.stored.tobytes())
            has_untaught = has_untaught or (document.untaught is not None and bool(document.untaught.any()))
            counts["n_documents"] += 1
            counts["n_examples"] += len(document.windows)
            counts["n_tokens"] += n_tokens
            counts["n_stored_tokens"] += len(document.tokens)
            n_pending += len(document.text)
            if len(rows) >= DOCUMENTS_PER_ROW_GROUP or n_pending >= CHARACTERS_PER_ROW_GROUP:
                flush()
                n_pending = 0
        flush()
    return counts | {"has_untaught": True} if has_untaught else counts
