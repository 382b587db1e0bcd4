"""Where things are kept: the folders of a store, and the home of what outlives a run."""

import os
from dataclasses import dataclass
from pathlib import Path

from storage.errors import InputError

__all__ = ["StoreFolders", "check_writable", "default_store", "home"]


def home() -> Path:
    """$DATAWORTH_HOME, else ~/.dataworth: the default store and the local MLflow."""
    return Path(os.environ.get("DATAWORTH_HOME") or Path.home() / ".dataworth").absolute()


def default_store() -> Path:
    """The store used where none is named."""
    return home() / "store"


def check_writable(folder: Path, option: str) -> None:
    """Refuse a folder that cannot be made or written, before any work is done; makes nothing.

    Raises:
        InputError: a file is in its way, or it may not be written.
    """
    nearest = folder.absolute()
    while not nearest.exists() and not nearest.is_symlink():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"{option} {folder}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{option} {folder}: {nearest} may not be written")


@dataclass(frozen=True)
class StoreFolders:
    """The folders of a store, one a kind (see storage.schema)."""

    root: Path

    @property
    def corpora(self) -> Path:
        return self.root / "corpora"

    @property
    def layers(self) -> Path:
        return self.root / "layers"

    @property
    def gradients(self) -> Path:
        return self.root / "gradients"

    @property
    def scores(self) -> Path:
        return self.root / "scores"

    @property
    def values(self) -> Path:
        return self.root / "values"
