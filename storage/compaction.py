"""Giving back the space of what was withdrawn: texts, gradients, and everything that was made of them."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from storage.corpus import CorpusStore
from storage.errors import StoreBusyError
from storage.gradients import GradientStore
from storage.layers import LayerStore
from storage.locations import Location, Place, StoreFolders
from storage.manifest import Store, is_complete, read_manifest
from storage.schema import SOURCE_SUMS_KIND
from storage.withdrawals import Withdrawals

__all__ = ["Compaction", "compact", "finished_stores"]


@dataclass(frozen=True)
class Compaction:
    """What was removed.

    Args:
        corpora, fits, scores, values: stores.
        gradient_bytes: of rows, in the stored data type.
    """

    corpora: int
    fits: int
    scores: int
    values: int
    gradient_bytes: int


def finished_stores(folder: Location) -> Iterator[Location]:
    """Folders of finished stores in a folder of stores."""
    return (path for path in folder.folders() if is_complete(path))


def compact(root: Place) -> Compaction:
    """Remove what belongs to withdrawn documents alone; killed at any moment, it is done by the next one.

    Gradients of a withdrawn text stay where another source provided the same text. Corpora that hold a withdrawn
    document go as a whole, with the fits, scores and values made of them: a later run reads its files again and finds
    every other document's gradients.

    Args:
        root: of the stores.

    Raises:
        StoreBusyError: a run is writing one of them.
        StoreDamagedError: a shard whose rows would move is damaged.
    """
    folders, withdrawn = StoreFolders(root), Withdrawals(root)
    touched: list[CorpusStore] = []
    live: set[bytes] = set()
    dead: set[bytes] = set()
    for path in finished_stores(folders.corpora):
        corpus = CorpusStore(path)
        ids, sources = (corpus.column(name).to_pylist() for name in ("document_id", "source"))
        gone = np.array([withdrawn.covers(*pair) for pair in zip(ids, sources, strict=True)], bool)
        live.update(corpus.contents[~gone].tolist())
        if gone.any():
            touched.append(corpus)
            dead.update(corpus.contents[gone].tolist())
    freed = _compact_gradients(folders.gradients, np.asarray(sorted(dead - live), "S32"))
    # What was made of a corpus goes before it: killed between, the next run still knows what to remove.
    names = {corpus.fingerprint for corpus in touched}
    contents = {corpus.contents_fingerprint for corpus in touched}
    scores = _removed(folders.scores, lambda store: store.get("corpus") in names)
    n_values = len(_removed(folders.values, lambda store: store.get("scores") in scores))
    n_values += len(
        _removed(folders.games, lambda store: store.get("scores") in scores or store.get("corpus") in contents)
    )
    n_fits = len(_removed(folders.layers, lambda store: store.get("corpus") in contents))
    n_fits += _remove_source_sums(folders.layers, dead - live)
    for corpus in touched:
        with corpus.path.writer_lock():
            corpus.path.remove_tree()
    for folder in (folders.corpora, folders.layers, folders.gradients, folders.scores, folders.values, folders.games):
        _remove_unfinished(folder)
    return Compaction(len(touched), n_fits, len(scores), n_values, freed)


def _compact_gradients(folder: Location, contents: np.ndarray) -> int:
    freed = 0
    for path in finished_stores(folder):
        store = GradientStore(path)
        with store.writer():
            store.remove_replaced()
            for segment in store.segments():
                freed += store.without(segment, contents)
    return freed


def _remove_unfinished(folder: Location) -> None:
    """Remove what a killed run left of stores that neither appear nor go in one step: it may hold withdrawn texts."""
    for path in folder.folders():
        if not path.appears_whole and not is_complete(path):
            with suppress(StoreBusyError), path.writer_lock():  # busy: it is being uploaded
                if not is_complete(path):
                    path.remove_tree()


def _remove_source_sums(folder: Location, contents: set[bytes]) -> int:
    """Remove sums by source that a withdrawn content is part of; those of other sources stay."""
    gone = np.asarray(sorted(contents), "S32")
    count = 0
    for path in finished_stores(folder):
        if dict(read_manifest(path).get("attributes", {})).get("kind") == SOURCE_SUMS_KIND:
            store = LayerStore(path)
            held = np.frombuffer(store.matrix(store.layers[0]["name"], "contents").tobytes(), "S32")
            if np.isin(held, gone).any():
                count += 1
                with path.writer_lock():
                    path.remove_tree()
    return count


def _removed(folder: Location, belongs: Callable[[dict[str, object]], bool]) -> set[str]:
    """Remove the stores whose attributes belong to what goes; returns their fingerprints."""
    removed = set()
    for path in finished_stores(folder):
        if belongs(dict(read_manifest(path).get("attributes", {}))):
            removed.add(Store(path).fingerprint)
            with path.writer_lock():
                path.remove_tree()
    return removed
