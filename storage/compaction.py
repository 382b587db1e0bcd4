"""Removing what was withdrawn: texts, gradients, all that was made of them; and the proof that it is gone."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import numpy as np

from dataworth.storage.belongings import belonging
from dataworth.storage.durable import remove_dead_partials
from dataworth.storage.encoding import STORED
from dataworth.storage.errors import StoreBusyError, StoreError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.locations import Place, StoreFolders, location_of
from dataworth.storage.manifest import is_complete
from dataworth.storage.owners import keep_owners, kept_owners
from dataworth.storage.place import Location
from dataworth.storage.removals import Removal, begun_removal, now, written
from dataworth.storage.segments import Segment
from dataworth.storage.withdrawals import Withdrawals

__all__ = ["Compaction", "compact"]

KINDS = ("values", "games", "scores", "gradients", "layers", "corpora")
PARTIAL_SUMS = ".partial-"


@dataclass(frozen=True)
class Compaction:
    """What was done.

    Args:
        receipts: of what was removed, with the file of each: none where nothing was there to be removed; two where
            an earlier compaction had been stopped and more was withdrawn since.
        checked: what was looked through afterwards: counts by name.
    """

    receipts: list[tuple[Removal, Location]]
    checked: Mapping[str, int]


def compact(root: Place) -> Compaction:
    """Remove what belongs to withdrawn documents alone; if killed at any moment, the next call finishes the work.

    Gradients of a withdrawn text stay where another source provided the same text. Corpora that hold a withdrawn
    document go as a whole, with the fits, scores and values made of them: a later run reads its files again and finds
    every other document's gradients.

    Args:
        root: of the stores.

    Raises:
        StoreBusyError: a run is writing one of them.
        StoreDamagedError: what would tell whose something is, or a shard whose rows would move, is damaged.
        StoreError: something of a withdrawn document is there all the same.
    """
    receipts = []
    begun = begun_removal(root)
    if begun is not None:
        receipts.append(_carried_out(root, begun))
    planned = _planned(root)
    if planned is not None:
        written(root, planned)
        receipts.append(_carried_out(root, planned))
    checked = receipts[-1][0].checked if receipts else _cleaned_and_checked(root, set())
    return Compaction(receipts, checked)


def _planned(root: Place) -> Removal | None:
    """What is to be removed; None: nothing."""
    withdrawn = Withdrawals(root)
    belongings = belonging(root, withdrawn)
    if not (belongings.gone or any(belongings.stores.values())):
        return None
    rows = row_bytes = 0
    for place in _gradient_folders(root):
        for segment in _segments(place):
            gone = np.isin(segment.contents, _hashes(belongings.dead))
            count = int(np.diff(segment.first_rows)[gone].sum())
            rows += count
            row_bytes += count * segment.n_columns * STORED[segment.dtype].itemsize
    return Removal(
        begun=now(),
        withdrawn=withdrawn.entries,
        texts=sorted(belongings.texts),
        contents=sorted(content.hex() for content in belongings.dead),
        shared=len({content for content, _, _ in belongings.gone} - belongings.dead),
        stores={kind: sorted(path.name for path in belongings.stores[kind]) for kind in KINDS},
        rows=rows,
        row_bytes=row_bytes,
    )


def _carried_out(root: Place, removal: Removal) -> tuple[Removal, Location]:
    belongings = belonging(root, Withdrawals(root))
    # Whose the rows are that stay must be known before the corpora go that tell it.
    keep_owners(root, belongings.live_of_removed | (kept_owners(root) & belongings.live))
    dead = {bytes.fromhex(content) for content in removal.contents} - {content for content, _, _ in belongings.live}
    _compact_gradients(root, dead)
    for kind, names in removal.stores.items():
        for name in names:
            path = _folder(root, kind) / name
            if is_complete(path):
                with path.writer_lock():
                    path.remove_tree()
    finished = removal.ended(_cleaned_and_checked(root, dead))
    return finished, written(root, finished)


def _folder(root: Place, kind: str) -> Location:
    folder: Location = getattr(StoreFolders(root), kind)
    return folder


def _hashes(contents: set[bytes]) -> np.ndarray:
    return np.asarray(sorted(contents), "S32")


def _gradient_folders(root: Place) -> list[Location]:
    """All of them, those whose manifest was set aside, too."""
    return StoreFolders(root).gradients.folders()


def _segments(store: Location) -> Iterator[Segment]:
    """All that were planned, those that others replace, too."""
    return (Segment(path) for path in store.folders() if is_complete(path))


def _compact_gradients(root: Place, dead: set[bytes]) -> None:
    contents = _hashes(dead)
    for path in _gradient_folders(root):
        with path.writer_lock():
            if is_complete(path):
                store = GradientStore(path)
                store.remove_replaced()
                for segment in store.segments():
                    store.without(segment, contents)
            elif any(np.isin(segment.contents, contents).any() for segment in _segments(path)):
                path.remove_tree()  # it was set aside: nobody reads it, and its rows are computed again


def _cleaned_and_checked(root: Place, dead: set[bytes]) -> dict[str, int]:
    """Remove what killed runs left, then look through everything; counts by name.

    Raises:
        StoreError: something of a withdrawn document is there.
    """
    folders = StoreFolders(root)
    for folder in (*(_folder(root, kind) for kind in KINDS), folders.owners):
        _remove_unfinished(folder)
    if dead:
        _remove_partial_sums(folders.layers)
    place = location_of(root)
    for local in {place if isinstance(place, Path) else Path(gettempdir())}:
        remove_dead_partials(local, deep=isinstance(place, Path))
    return _checked(root, dead)


def _checked(root: Place, dead: set[bytes]) -> dict[str, int]:
    belongings = belonging(root, Withdrawals(root))
    left = [path for paths in belongings.stores.values() for path in paths]
    kept: set[bytes] = set()
    for place in _gradient_folders(root):
        for segment in _segments(place):
            kept.update(segment.contents.tolist())
            if np.isin(segment.contents, _hashes(dead | belongings.dead)).any():
                left.append(segment.path)
    if left:
        raise StoreError(f"{left[0]} still holds something of a withdrawn document: run `dataworth compact` again")
    known = {content for content, _, _ in belongings.live}
    return {
        "stores": belongings.n_stores,
        "documents": belongings.n_documents,
        "contents of gradients": len(kept),
        "contents of nobody known": len(kept - known),
    }


def _remove_unfinished(folder: Location) -> None:
    """Remove what a killed run left of stores that neither appear nor go in one step: it may hold withdrawn texts."""
    for path in folder.folders():
        if not path.appears_whole and not is_complete(path):
            with suppress(StoreBusyError), path.writer_lock():  # busy: it is being uploaded
                if not is_complete(path):
                    path.remove_tree()


def _remove_partial_sums(folder: Location) -> None:
    """Of killed fits: the run that would go on from them has another corpus now."""
    for name in folder.files():
        if name.startswith(PARTIAL_SUMS):
            (folder / name).remove()
