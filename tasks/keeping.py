"""Results of steps: found again by the fingerprint of all that decides them, else built once, by one run for all."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from dataworth.storage.coalitions import CoalitionStore
from dataworth.storage.errors import StoreBusyError
from dataworth.storage.layers import LayerStore
from dataworth.storage.locations import StoreFolders
from dataworth.storage.manifest import writer_lock
from dataworth.storage.place import Location
from dataworth.storage.ref import StoreRef, fingerprint
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.progress import run_logger

__all__ = ["kept"]

SECONDS_BETWEEN_TRIES = 0.5
Kind = Literal["layers", "scores", "coalitions"]
STORES: dict[str, Any] = {"layers": LayerStore, "scores": ScoreStore, "coalitions": CoalitionStore}


def kept(
    store: str, kind: Kind, parts: Mapping[str, Any], what: str | None, build: Callable[[Location, str], object]
) -> StoreRef:
    """The finished store of a result: the one that is there, or else one that is built now.

    Where another run builds the same it is waited for, and looked for again.

    Args:
        store: root of the stores.
        kind: of the result's.
        parts: all that decides it, JSON-serialisable.
        what: it is, for the log; None: one of many, of which nothing is said.
        build: writes it, from the folder of all such stores and its name there.
    """
    folders, name = StoreFolders(store), fingerprint(parts)
    root = folders.values if kind == "coalitions" else getattr(folders, kind)
    ref = StoreRef(kind=kind, location=str(root / name), fingerprint=name)
    if not STORES[kind].exists(root, name):
        with _built_by_one(root / f"{name}-build", what):
            if not STORES[kind].exists(root, name):  # another run may just have built it
                build(root, name)
                return ref
    if what is not None:
        run_logger().info("%s: there already (%s)", what, name)
    return ref


@contextmanager
def _built_by_one(lock: Location, what: str | None) -> Iterator[None]:
    """Hold a lock, whoever has it first."""
    waits = False
    while True:
        holding = writer_lock(lock)
        try:
            holding.__enter__()
            break
        except StoreBusyError:
            if not waits:
                run_logger().info("%s: another run builds it: waiting", what or "a part")
            waits = True
            time.sleep(SECONDS_BETWEEN_TRIES)
    try:
        yield
    finally:
        holding.__exit__(None, None, None)
