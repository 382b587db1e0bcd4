"""The entries of `--corpus`: a file, folder, pattern or data set, and the source that a person gave its documents."""

import glob
import os.path
from dataclasses import dataclass

from dataworth.storage.errors import InputError
from dataworth.tasks.visible import visible

__all__ = ["Place", "place_of"]

HUB = "hf:"
WILD = "*?["


@dataclass(frozen=True)
class Place:
    """One entry.

    Args:
        name: of the file, folder or data set, or a pattern.
        owner: the source of all its documents; None: they say it themselves.
    """

    name: str
    owner: str | None = None

    @property
    def is_of_hub(self) -> bool:
        """Is it a data set of the `datasets` library?"""
        return self.name.startswith(HUB)

    @property
    def folder(self) -> str:
        """The folder in which a pattern looks for files; of anything else its name."""
        if not self.is_pattern:
            return self.name
        before = next(n for n, sign in enumerate(self.name) if sign in WILD)
        return os.path.dirname(self.name[:before]) or "."

    @property
    def is_pattern(self) -> bool:
        """Is it of several files?"""
        return not self.is_of_hub and not os.path.lexists(self.name) and any(sign in self.name for sign in WILD)

    @property
    def files(self) -> list[str]:
        """The files of a pattern by name, its folders where it fits no file; of anything else its name.

        Raises:
            InputError: none has such a name.
        """
        if not self.is_pattern:
            return [self.name]
        found = sorted(glob.glob(self.name, recursive=True))
        if not found:
            raise InputError(f"{visible(self.name)}: no file has such a name")
        return [name for name in found if not os.path.isdir(name)] or found


def place_of(entry: str) -> Place:
    """An entry as it was given: NAME, or OWNER=NAME where no file is called so."""
    if entry.startswith(HUB) or os.path.lexists(entry):
        return Place(entry)
    whole = Place(entry)
    owner, equals, name = entry.partition("=")
    if not (equals and owner.strip() and "/" not in owner and name):
        return whole
    # Folders are called key=value, too.
    return whole if whole.is_pattern and glob.glob(entry) else Place(name, owner.strip())
