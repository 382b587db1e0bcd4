"""Where things are kept: the folders of a store, and the home of what outlives a run."""

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["StoreFolders", "default_store", "home"]


def home() -> Path:
    """$DATAWORTH_HOME, else ~/.dataworth: the default store and the local MLflow."""
    return Path(os.environ.get("DATAWORTH_HOME") or Path.home() / ".dataworth").absolute()


def default_store() -> Path:
    """The store used where none is named."""
    return home() / "store"


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
