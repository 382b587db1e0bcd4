"""Walking every store and naming what is damaged."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dataworth.storage.belongings import finished_stores
from dataworth.storage.coalitions import UtilityStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import StoreBusyError, StoreError, StoreReadOnlyError, StoreUnreachableError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.layers import LayerStore
from dataworth.storage.locations import Place, StoreFolders
from dataworth.storage.manifest import Store, set_aside
from dataworth.storage.place import Location
from dataworth.storage.removals import receipts
from dataworth.storage.schema import NO_CLASS, TOKEN_DTYPE
from dataworth.storage.segments import Segment
from dataworth.storage.withdrawals import Withdrawals

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
    """Read and check every file below a root that any command reads.

    What is damaged of gradients, a shard or the plan of a segment, is set aside, so that indexing its documents again
    computes it, and it alone. Other stores are quick to make again: their damage says what to remove.

    Args:
        root: of the stores.
    """
    folders = StoreFolders(root)
    yield _checked("withdrawals", lambda: Withdrawals(root))
    for path in finished_stores(folders.corpora):
        yield _store(f"corpus {path.name}", path, _read_corpus)
    for path in finished_stores(folders.layers):
        yield _store(f"layers {path.name}", path, _read_matrices)
    for path in finished_stores(folders.gradients):
        yield from _gradients(path)
    for path in finished_stores(folders.scores):
        yield _store(f"scores {path.name}", path, _read_files)
    for path in finished_stores(folders.values):
        yield _store(f"values {path.name}", path, _read_files)
    for path in finished_stores(folders.games):
        yield _store(f"game {path.name}", path, _read_additions)
    for path in finished_stores(folders.owners):
        yield _store(f"owners {path.name}", path, _read_files)
    yield _checked("receipts", lambda: receipts(root))


def _store(what: str, path: Location, read: Callable[[Location], object]) -> Checked:
    return _checked(what, lambda: read(path), sum(path.files().values()))


def _checked(
    what: str, read: Callable[[], object], n_bytes: int = 0, damaged: Callable[[], str] | None = None
) -> Checked:
    """What reading something came to.

    Args:
        what: names it.
        read: raises a StoreError where it is damaged.
        n_bytes: on disk.
        damaged: called where it is, and says what was done about it; None: nothing.
    """
    try:
        read()
    except StoreUnreachableError:  # says nothing about the store
        raise
    except StoreError as error:
        return Checked(what, n_bytes, str(error) if damaged is None else damaged())
    return Checked(what, n_bytes, None)


def _read_files(path: Location) -> Store:
    """Every byte of a store that was written once."""
    store = Store(path)
    store.files.check_all()
    return store


def _read_additions(path: Location) -> None:
    store = UtilityStore(path)
    for _ in store.additions():
        pass
    store.check_weights()


def _read_corpus(path: Location) -> None:
    """All files; where they have no checksums of their own, tokens by the content hash of each document."""
    if _read_files(path).files.expected is not None:
        return
    corpus = CorpusStore(path)
    windows, first = corpus.windows, corpus.first_windows
    ids = corpus.column("document_id").to_pylist()
    for document, (start, end) in enumerate(pairwise(first)):
        own = range(int(start), int(end))
        label = int(windows["label"][start]) if len(own) else NO_CLASS
        targets = windows["n_masked"][start:end] if label == NO_CLASS else np.asarray([label])
        tokens = [corpus.stored_tokens(window).astype(TOKEN_DTYPE).tobytes() for window in own]
        content = hashlib.sha256(targets.astype(TOKEN_DTYPE).tobytes() + b"".join(tokens)).digest()
        if len(own) and content.rstrip(b"\0") != corpus.contents[document]:
            raise corpus.files.damaged("tokens.bin", f"the tokens of document {ids[document]!r} changed")


def _read_matrices(path: Location) -> None:
    if _read_files(path).files.expected is not None:
        return
    store = LayerStore(path)
    for layer in store.layers:
        for name in store.names(layer.name):
            store.matrix(layer.name, name)


def _gradients(path: Location) -> Iterator[Checked]:
    """The manifest, every plan, every shard that counts; what is damaged is set aside where no run is writing."""
    what = f"gradients {path.name}"

    def aside(folder: Location, then: str) -> Callable[[], str]:
        return lambda: _set_aside(path, lambda: set_aside(folder), then)

    whole = _checked(what, lambda: GradientStore(path), 0, aside(path, "`dataworth index` writes it again"))
    yield whole
    if whole.damage is not None:
        return
    store = GradientStore(path)
    for place in store.segment_places():
        again = aside(place, "`dataworth index` computes its documents again")
        named = f"{what}, plan of segment {place.name}"
        plan = _checked(named, lambda place=place: Segment(place).check_plan(), 0, again)  # type: ignore[misc]
        yield plan
        if plan.damage is None:
            yield from _shards(what, store, Segment(place))


def _shards(what: str, store: GradientStore, segment: Segment) -> Iterator[Checked]:
    for shard, done in enumerate(segment.shards_done()):
        if done:
            yield _checked(
                f"{what}, segment {segment.name}, shard {shard}",
                lambda shard=shard: segment.check_shard(shard),  # type: ignore[misc]
                segment.shard_bytes(shard),
                lambda shard=shard: _set_aside(  # type: ignore[misc]
                    store.path, lambda: segment.set_aside(shard), "`dataworth index` computes it again, and it alone"
                ),
            )


def _set_aside(store: Location, move: Callable[[], None], then: str) -> str:
    """Set something aside; what is said of it."""
    try:
        with store.writer_lock():
            move()
    except StoreBusyError:
        return "its bytes changed; a run is writing this store: verify again after it"
    except StoreReadOnlyError:
        return f"its bytes changed; {store} may not be written, so it cannot be set aside and computed again here"
    return f"its bytes changed; set aside: {then}"
