"""Which documents and sources were withdrawn: their providers want them out of every later valuation."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime

from storage.errors import StoreDamagedError
from storage.locations import Location, Place
from storage.names import folded

__all__ = ["Withdrawals"]

FILE = "withdrawals.jsonl"


class Withdrawals:
    """The list of one root of stores, read once; every line of its file is one withdrawal, with its date.

    A name covers all that look the same: what a provider withdrew must not come back by a space.

    Args:
        root: of the stores.

    Raises:
        StoreDamagedError: a line cannot be read.
    """

    def __init__(self, root: Place) -> None:
        self._path = Location.of(root) / FILE
        self.sources: set[str] = set()
        self.documents: set[str] = set()
        for number, line in enumerate(self._text().splitlines(), 1):
            try:
                entry = json.loads(line)
                (self.sources if entry["what"] == "source" else self.documents).add(folded(entry["name"]))
            except (ValueError, KeyError, TypeError):
                raise StoreDamagedError(f"{self._path}: line {number} is not a withdrawal; mend or remove it") from None

    def _text(self) -> str:
        try:
            return self._path.read_bytes().decode()
        except FileNotFoundError:
            return ""

    def covers(self, document_id: str, source: str) -> bool:
        """The document was withdrawn, by itself or with its source."""
        return bool(
            (self.sources and folded(source) in self.sources)
            or (self.documents and folded(document_id) in self.documents)
        )

    def add(self, sources: Iterable[str] = (), documents: Iterable[str] = ()) -> int:
        """Withdraw sources and documents; returns how many are new.

        Raises:
            StoreBusyError: another process is withdrawing.
        """
        with self._path.writer_lock():
            self.__init__(self._path.parent)  # type: ignore[misc]  # what another process added meanwhile
            new = [("source", name) for name in _once(sources) if folded(name) not in self.sources]
            new += [("document", name) for name in _once(documents) if folded(name) not in self.documents]
            if new:
                date = datetime.now(UTC).isoformat(timespec="seconds")
                lines = [json.dumps({"what": what, "name": name, "date": date}) for what, name in new]
                self._path.write_whole((self._text() + "".join(f"{line}\n" for line in lines)).encode())
                self.__init__(self._path.parent)  # type: ignore[misc]  # read back
        return len(new)


def _once(names: Iterable[str]) -> list[str]:
    """The first of those that look the same."""
    return list({folded(name): name for name in reversed(list(names))}.values())[::-1]
