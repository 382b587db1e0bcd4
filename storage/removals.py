"""What a compaction removes, written down before the first of it goes, and kept as its receipt.

A receipt names what was withdrawn, as its provider did, and each text by its SHA-256; nothing else of it is in there.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from dataworth.storage.checksums import is_sealed, sealed, unsealed
from dataworth.storage.errors import StoreDamagedError
from dataworth.storage.locations import Place, StoreFolders
from dataworth.storage.place import Location

__all__ = ["Removal", "begun_removal", "now", "receipts", "written"]

SUFFIX = ".json"


@dataclass(frozen=True)
class Removal:
    """One compaction, under way or finished.

    Args:
        begun: date and time, UTC.
        withdrawn: entries of the list of withdrawals that it carries out: what, name, date.
        texts: SHA-256 of each document's text, in hexadecimal digits.
        contents: of each document's token ids, as rows are kept under.
        shared: how many of these contents stay, since another source provided the same.
        stores: kind → names of the folders that go.
        rows: of gradients.
        row_bytes: of those.
        finished: date and time; None while it is under way.
        checked: what was looked through afterwards: counts by name.
    """

    begun: str
    withdrawn: list[dict[str, str]]
    texts: list[str]
    contents: list[str]
    shared: int
    stores: dict[str, list[str]]
    rows: int
    row_bytes: int
    finished: str | None = None
    checked: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "".join(character for character in self.begun if character.isalnum())

    def ended(self, checked: Mapping[str, int]) -> "Removal":
        """The same, finished now."""
        return replace(self, finished=now(), checked=dict(checked))


def now() -> str:
    """Date and time, UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def written(root: Place, removal: Removal) -> Location:
    """Keep a removal; returns its file."""
    path = StoreFolders(root).receipts / f"{removal.name}{SUFFIX}"
    path.write_whole(json.dumps(sealed(asdict(removal)), indent=1).encode())
    return path


def begun_removal(root: Place) -> Removal | None:
    """The removal that was stopped under way, if there is one.

    Raises:
        StoreDamagedError: a receipt is not what was written.
    """
    return next((removal for removal in receipts(root) if removal.finished is None), None)


def receipts(root: Place) -> list[Removal]:
    """The receipts of all compactions that removed something, the earliest first.

    Raises:
        StoreDamagedError: one is not what was written.
    """
    folder = StoreFolders(root).receipts
    return [_read(folder / name) for name in folder.files() if name.endswith(SUFFIX) and not name.startswith(".")]


def _read(path: Location) -> Removal:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        if is_sealed(content):
            return Removal(**unsealed(content))
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise StoreDamagedError(f"{path}: its bytes changed: put a copy in its place, or remove it")
