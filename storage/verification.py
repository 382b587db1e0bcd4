"""Walking every store and naming what is damaged."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
from pyarrow import ArrowException

from storage.compaction import finished_stores
from storage.corpus import CorpusStore
from storage.errors import StoreBusyError, StoreDamagedError, StoreError, StoreUnreachableError
from storage.gradients import GradientStore
from storage.layers import LayerStore
from storage.locations import Location, Place, StoreFolders
from storage.manifest import read_manifest
from storage.schema import NO_CLASS, TOKEN_DTYPE
from storage.segments import Segment

__all__ = ["Checked", "verified"]


@dataclass(frozen=True)
class Checked:
    """One thing that was checked.

    Args:
        what: names it.
        n_bytes: on disk.
        damage: a sentence, None where it is whole.
    """

    what: str
    n_bytes: int
    damage: str | None


def verified(root: Place) -> Iterator[Checked]:
    """Read and check every store below a root: tables, tokens, matrices, and each shard of gradients.

    A damaged shard is set aside, so that indexing its documents again computes it, and it alone. Other stores are
    quick to make again: their damage says what to remove.

    Args:
        root: of the stores.
    """
    folders = StoreFolders(root)
    for path in finished_stores(folders.corpora):
        yield _checked(f"corpus {path.name}", path, _read_corpus)
    for path in finished_stores(folders.layers):
        yield _checked(f"layers {path.name}", path, _read_matrices)
    for path in finished_stores(folders.gradients):
        yield from _gradients(path)
    for path in finished_stores(folders.scores):
        yield _checked(f"scores {path.name}", path, _read_tables)
    for path in finished_stores(folders.values):
        yield _checked(f"values {path.name}", path, _read_tables)
    for path in finished_stores(folders.games):
        yield _checked(f"game {path.name}", path, _read_tables)


def _checked(what: str, path: Location, read: Callable[[Location], None]) -> Checked:
    n_bytes = sum(path.files().values())
    try:
        read(path)
    except StoreUnreachableError:
        raise
    except StoreError as error:
        return Checked(what, n_bytes, str(error))
    except (OSError, ValueError, KeyError, ArrowException) as error:
        reason = " ".join(str(error).split())
        return Checked(what, n_bytes, f"{path} cannot be read ({reason}): remove it and run again")
    return Checked(what, n_bytes, None)


def _read_tables(path: Location) -> None:
    """Every byte of the tables, by the checksums of the manifest; tables added later bear theirs as a name."""
    known = dict(read_manifest(path).get("tables", {}))
    for name in path.files():
        if name.endswith(".parquet"):
            digest = hashlib.sha256((path / name).read_bytes()).hexdigest()
            stem = name.removesuffix(".parquet")
            expected = known.get(name, stem if len(stem) == len(digest) else digest)  # early stores have none
            if digest != expected:
                raise StoreDamagedError(f"{path / name}: its bytes changed: remove {path} and run again")
            pq.read_table((path / name).table_source(), page_checksum_verification=True)


def _read_corpus(path: Location) -> None:
    """Tables by their checksums, tokens by the content hash of each document."""
    _read_tables(path)
    corpus = CorpusStore(path)
    windows, first = corpus.windows, corpus.first_windows
    ids = corpus.column("document_id").to_pylist()
    for document, (start, end) in enumerate(pairwise(first)):
        own = range(int(start), int(end))
        label = int(windows["label"][start]) if len(own) else NO_CLASS
        targets = windows["n_masked"][start:end] if label == NO_CLASS else np.asarray([label])
        tokens = [corpus.tokens(window).astype(TOKEN_DTYPE).tobytes() for window in own]
        content = hashlib.sha256(targets.astype(TOKEN_DTYPE).tobytes() + b"".join(tokens)).digest()
        if len(own) and content.rstrip(b"\0") != corpus.contents[document]:
            raise StoreDamagedError(
                f"{path}: the tokens of document {ids[document]!r} changed: remove it and run again"
            )


def _read_matrices(path: Location) -> None:
    store = LayerStore(path)
    for layer in store.layers:
        for name in store.names(layer["name"]):
            store.matrix(layer["name"], name)


def _gradients(path: Location) -> Iterator[Checked]:
    """Every shard that counts; damaged ones are set aside where no run is writing."""
    try:
        store = GradientStore(path)
        segments = store.segments()
    except StoreUnreachableError:
        raise
    except (StoreError, ValueError, OSError, KeyError) as error:
        yield Checked(f"gradients {path.name}", 0, f"{path}: {error}")
        return
    for segment in segments:
        for shard, done in enumerate(segment.shards_done()):
            if done:
                yield _shard(store, segment, shard)


def _shard(store: GradientStore, segment: Segment, shard: int) -> Checked:
    what = f"gradients {store.fingerprint}, segment {segment.name}, shard {shard}"
    n_bytes = segment.shard_bytes(shard)
    try:
        segment.read_shard(shard)
    except StoreUnreachableError:  # says nothing about the shard
        raise
    except StoreError:
        try:
            with store.writer():
                segment.set_aside(shard)
        except StoreBusyError:
            return Checked(what, n_bytes, "its bytes changed; a run is writing this store: verify again after it")
        return Checked(what, n_bytes, "its bytes changed; set aside: `dataworth index` computes it again, and it alone")
    return Checked(what, n_bytes, None)
