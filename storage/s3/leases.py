"""The lock that lets one process alone write to a folder on an object store.

The lock is an object beside the folder, made by a put that fails where there is one already, and renewed by a thread
while it is held. A lock that was not renewed for SECONDS_STALE may be taken over, by a put that fails if the lock has
changed since it was read; whether it is that old is judged by the times the server itself gives to objects, not by
this machine's clock. Every write below a folder whose lock this process holds first asks whether it still does.
"""

import getpass
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from typing import Any
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from dataworth.storage.errors import StoreBusyError, StoreError, StoreUnreachableError
from dataworth.storage.place import Location, lock_held
from dataworth.storage.processes import is_alive, process_space
from dataworth.storage.s3.client import client, translate_errors

__all__ = ["check_leases", "lease"]

SECONDS_STALE = 60.0
SECONDS_BETWEEN_RENEWALS = 15.0
# The server's times are whole seconds, and a renewal takes a moment to arrive.
SECONDS_OF_DOUBT = 5.0
ATTEMPTS = 3

_HELD: set["_Lease"] = set()
_CONDITIONAL: set[str] = set()  # buckets whose server was seen to refuse a second lock


def check_leases(bucket: str, key: str) -> None:
    """Refuse to write an object below a folder whose lock this process had and has lost.

    Raises:
        StoreBusyError: another run has taken it over, or may have by now.
    """
    for held in list(_HELD):
        if held.guards(bucket, key):
            held.check()


@contextmanager
def lease(folder: Location, bucket: str, key: str) -> Iterator[None]:
    """Hold the lock that lets one process alone write to a folder.

    Args:
        folder: as messages name it.
        bucket: it is in.
        key: that those of its files begin with.

    Raises:
        StoreBusyError: another process holds it, or took it over before the block ended.
    """
    held = _Lease(folder, bucket, key)
    held.acquire()
    try:
        yield
        held.check()
    finally:
        held.release()


class _Lease:
    def __init__(self, folder: Location, bucket: str, key: str) -> None:
        self._folder, self._bucket, self._key = folder, bucket, key
        around, _, name = key.rpartition("/")
        self._lock = f"{around}/.{name}.lock".lstrip("/")
        self._token, self._n_renewals = uuid4().hex, 0
        self._e_tag: str | None = None
        self._renewed_at = 0.0
        self._lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, name=f"lock of {folder}", daemon=True)

    def guards(self, bucket: str, key: str) -> bool:
        """An object belongs to the folder."""
        return bucket == self._bucket and f"{key}/".startswith(f"{self._key}/")

    def check(self) -> None:
        """Raises StoreBusyError where the lock is lost, or was not renewed for so long that it may be."""
        if self._lost or time.monotonic() - self._renewed_at > SECONDS_STALE - SECONDS_OF_DOUBT:
            raise StoreBusyError(
                f"another run has taken over {self._folder}, whose lock this one did not renew in time: wait for it "
                "to end, then run again"
            )

    def acquire(self) -> None:
        """Take the lock and keep it; StoreBusyError where another process holds it."""
        for _ in range(ATTEMPTS):
            if self._written("create"):
                self._check_conditions()
                break
            lock = self._read()
            if lock is None:  # freed this very moment
                continue
            content, e_tag, written_at = lock
            if not _is_dead(content) and (self._server_time() - written_at).total_seconds() <= SECONDS_STALE:
                raise lock_held(self._folder)
            if self._written({"e_tag": e_tag}):
                break
        else:
            raise lock_held(self._folder)
        _HELD.add(self)
        self._thread.start()

    def _check_conditions(self) -> None:
        """Make sure once that the server refuses what S3 refuses: others take any put, and the lock would lock nothing.

        Raises:
            StoreError: it does not.
        """
        if self._bucket in _CONDITIONAL:
            return
        with self._asking(self._lock):
            try:
                obstore.put(client(self._bucket), self._lock, b"{}", mode="create")
            except AlreadyExistsError:
                _CONDITIONAL.add(self._bucket)
                return
        self._remove(self._lock)
        raise StoreError(
            f"the object store of s3://{self._bucket} takes no account of If-None-Match, so two runs could write at "
            "once: update it, or use another"
        )

    def release(self) -> None:
        """Free the lock, if it still is this one's; what cannot be freed now will be too old in a minute."""
        self._ended.set()
        self._thread.join(SECONDS_BETWEEN_RENEWALS)
        _HELD.discard(self)
        with suppress(StoreUnreachableError, StoreBusyError):  # busy: a lock around this one is lost
            lock = self._read()
            if lock is not None and lock[0].get("token") == self._token:
                self._remove(self._lock)

    def _asking(self, key: str) -> AbstractContextManager[None]:
        return translate_errors(f"s3://{self._bucket}/{key}")

    def _remove(self, key: str) -> None:
        check_leases(self._bucket, key)
        with self._asking(key):
            obstore.delete(client(self._bucket), [key])

    def _written(self, mode: Any) -> bool:
        """Put the lock under a condition; False where the condition does not hold."""
        # Never the same bytes twice: a lock that was renewed must have another ETag than the one that was read.
        self._n_renewals += 1
        content = {**_identity(), "token": self._token, "renewals": self._n_renewals}
        started = time.monotonic()
        with self._asking(self._lock):
            try:
                put = obstore.put(client(self._bucket), self._lock, json.dumps(content).encode(), mode=mode)
                self._e_tag = put["e_tag"]
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                # A put that is repeated because its answer was lost finds what it wrote itself.
                lock = self._read()
                if lock is None or lock[0].get("token") != self._token:
                    return False
                self._e_tag = lock[1]
        self._renewed_at = started
        return True

    def _read(self) -> tuple[dict[str, Any], str, datetime] | None:
        """(content, ETag, time of the last renewal) of the lock; None where there is none."""
        try:
            with self._asking(self._lock):
                stored = obstore.get(client(self._bucket), self._lock)
                meta, content = stored.meta, bytes(stored.bytes())
        except FileNotFoundError:
            return None
        try:
            parsed = json.loads(content)
        except ValueError:
            parsed = None
        return parsed if isinstance(parsed, dict) else {}, str(meta["e_tag"]), meta["last_modified"]

    def _server_time(self) -> datetime:
        """What the server takes for now: the time it gives to an object made for the purpose."""
        probe = f"{self._lock}-{self._token}"
        check_leases(self._bucket, probe)
        with self._asking(probe):
            obstore.put(client(self._bucket), probe, b"")
        try:
            with self._asking(probe):
                now: datetime = obstore.head(client(self._bucket), probe)["last_modified"]
            return now
        finally:
            self._remove(probe)

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_RENEWALS):
            with suppress(StoreUnreachableError):  # the next attempt may succeed; `check` knows how long it has been
                if not self._written({"e_tag": self._e_tag}):
                    self._lost = True
                    return


def _identity() -> dict[str, Any]:
    try:
        owner = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        owner = str(os.getuid())
    return {"owner": owner, "host": platform.node(), "process": os.getpid(), "processes": process_space()}


def _is_dead(content: dict[str, Any]) -> bool:
    """The holder ran where this process runs, and does no longer."""
    space, process = content.get("processes"), content.get("process")
    if space is None or space != process_space() or not isinstance(process, int) or process <= 0:
        return False
    return not is_alive(process)
