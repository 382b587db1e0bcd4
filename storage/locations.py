"""Where things are kept: a folder of this machine or one of an object store, and the home of what outlives a run.

Everything that reads or writes a store goes through a Location. Which of the two kinds it is, only this module knows.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from dataworth.storage.errors import InputError
from dataworth.storage.local import LocalLocation
from dataworth.storage.place import Location

__all__ = [
    "Place",
    "StoreFolders",
    "check_usable",
    "check_writable",
    "default_store",
    "home",
    "home_folder",
    "location_of",
]

Place = str | Path | Location


def location_of(place: Place) -> Location:
    """The location a text or a path names: `s3://bucket/prefix`, else a folder of this machine.

    Raises:
        InputError: it starts with `s3:` and is no address.
    """
    if isinstance(place, Location):
        return place
    if str(place).startswith("s3:"):
        from dataworth.storage.s3.objects import ObjectLocation

        return ObjectLocation.parsed(str(place))
    return LocalLocation(place)


def home() -> Path:
    """$DATAWORTH_HOME, else ~/.dataworth: the default store and the local MLflow.

    Raises:
        InputError: the variable is not set, and nobody knows of a home folder.
    """
    return home_folder("DATAWORTH_HOME", ".dataworth")


def home_folder(variable: str, name: str) -> Path:
    """The folder that an environment variable names, else one of that name in the user's home folder.

    Raises:
        InputError: the variable is not set, and nobody knows of a home folder.
    """
    try:
        return Path(os.environ.get(variable) or Path("~", name)).expanduser().absolute()
    except RuntimeError:
        raise InputError(f"no home folder is known for ~/{name}: set {variable} to a folder") from None


def default_store() -> Path:
    """The store used where none is named."""
    return home() / "store"


def check_writable(place: Place, option: str) -> None:
    """Refuse a place that cannot be made or written, before any work is done; makes nothing.

    Raises:
        InputError: a file is in its way, it may not be written, or its object store cannot be reached.
    """
    location_of(place).check_writable(option)


def check_usable(place: Place, option: str) -> None:
    """As `check_writable`, but a folder of stores that exists already may be read-only.

    What is not in it yet is then refused by the step that would make it.
    """
    folder = location_of(place)
    if not (folder.is_read_only() and (folder / "corpora").is_dir()):
        folder.check_writable(option)


@dataclass(frozen=True)
class StoreFolders:
    """The folders of a store, one a kind (see dataworth.storage.schema)."""

    root: Place

    @property
    def corpora(self) -> Location:
        return location_of(self.root) / "corpora"

    @property
    def layers(self) -> Location:
        return location_of(self.root) / "layers"

    @property
    def gradients(self) -> Location:
        return location_of(self.root) / "gradients"

    @property
    def scores(self) -> Location:
        return location_of(self.root) / "scores"

    @property
    def values(self) -> Location:
        return location_of(self.root) / "values"

    @property
    def games(self) -> Location:
        return location_of(self.root) / "games"

    @property
    def owners(self) -> Location:
        return location_of(self.root) / "owners"

    @property
    def receipts(self) -> Location:
        return location_of(self.root) / "receipts"

    @property
    def runs(self) -> Location:
        return location_of(self.root) / "runs"
