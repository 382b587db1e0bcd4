"""Which documents and sources were withdrawn: their providers want them out of every later valuation."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import google_crc32c

from dataworth.storage.checksums import is_sealed, sealed
from dataworth.storage.errors import StoreDamagedError
from dataworth.storage.locations import Place, location_of
from dataworth.storage.names import folded

__all__ = ["Withdrawals"]

FILE = "withdrawals.jsonl"
CHECKSUMS = "withdrawals.crc32c"


class Withdrawals:
    """The list of one root of stores, read once; every line of its file is one withdrawal, with its date.

    A name covers all that look the same: what a provider withdrew must not come back by a space. `entries` has the
    withdrawals as they were made: what, name, date.

    Args:
        root: of the stores.

    Raises:
        StoreDamagedError: the list is not what was written, or is gone; a line cannot be read.
    """

    def __init__(self, root: Place) -> None:
        self._path = location_of(root) / FILE
        self.sources: set[str] = set()
        self.documents: set[str] = set()
        self.entries: list[dict[str, str]] = []
        for number, line in enumerate(self._checked().decode(errors="replace").splitlines(), 1):
            try:
                entry = json.loads(line)
                (self.sources if entry["what"] == "source" else self.documents).add(folded(entry["name"]))
                self.entries.append({name: str(value) for name, value in entry.items()})
            except (ValueError, KeyError, TypeError):
                raise StoreDamagedError(f"{self._path}: line {number} is not a withdrawal; mend or remove it") from None

    def _content(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""

    def _checked(self) -> bytes:
        """The list, compared with its checksum; one that was begun before there were checksums has none."""
        content, sums = self._content(), self._path.with_name(CHECKSUMS)
        try:
            record = json.loads(sums.read_bytes())
            known = record["lists"] if is_sealed(record) else None
        except FileNotFoundError:
            return content
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            known = None
        if known is None:
            raise StoreDamagedError(
                f"{sums}: its bytes changed: make sure that {self._path} has every withdrawal, remove {sums.name}, and "
                "the next withdrawal writes it again"
            )
        if _crc32c(content) not in known:
            raise StoreDamagedError(
                f"{self._path}: {'its bytes changed' if content else 'is gone'}: put a copy in its place, or mend it "
                f"and remove {sums.name}; whoever it no longer names would be counted again"
            )
        return content

    def _state(self) -> tuple[Any, ...] | None:
        try:
            return self._path.state()
        except FileNotFoundError:
            return None

    def _write(self, content: bytes, before: tuple[Any, ...] | None) -> None:
        """Replace the list; killed at any moment, the checksums know the list that is there."""
        self._seal([self._content(), content])
        self._path.write_over(content, before)
        self._seal([content])

    def _seal(self, lists: list[bytes]) -> None:
        """Keep the checksums of the lists that may be there."""
        record = {"lists": [_crc32c(each) for each in lists]}
        self._path.with_name(CHECKSUMS).write_whole(json.dumps(sealed(record)).encode())

    def covers(self, document_id: str, source: str) -> bool:
        """The document was withdrawn, by itself or with its source."""
        return self.covers_source(source) or bool(self.documents and folded(document_id) in self.documents)

    def covers_source(self, source: str) -> bool:
        """The whole source was withdrawn."""
        return bool(self.sources and folded(source) in self.sources)

    def add(self, sources: Iterable[str] = (), documents: Iterable[str] = ()) -> int:
        """Withdraw sources and documents; returns how many are new.

        Raises:
            StoreBusyError: another process is withdrawing.
        """
        with self._path.writer_lock():
            before = self._state()
            self.__init__(self._path.parent)  # type: ignore[misc]  # what another process added meanwhile
            new = [("source", name) for name in _once(sources) if folded(name) not in self.sources]
            new += [("document", name) for name in _once(documents) if folded(name) not in self.documents]
            if new:
                date = datetime.now(UTC).isoformat(timespec="seconds")
                lines = [json.dumps({"what": what, "name": name, "date": date}) for what, name in new]
                self._write(self._content() + "".join(f"{line}\n" for line in lines).encode(), before)
                self.__init__(self._path.parent)  # type: ignore[misc]  # read back
            elif self._content():
                self._seal([self._content()])  # a withdrawal that was stopped may know of two lists
        return len(new)


def _once(names: Iterable[str]) -> list[str]:
    """The first of those that look the same."""
    return list({folded(name): name for name in reversed(list(names))}.values())[::-1]


def _crc32c(content: bytes) -> str:
    return f"{google_crc32c.value(content):08x}"
